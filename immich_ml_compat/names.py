"""Which model answers which name: the known names, those on disk, and the substitutions of the settings."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from .catalog import (
    CHINESE_CLIP_DIMENSIONS,
    CHINESE_CLIP_IMMICH_NAMES,
    CLIP_DIMENSIONS,
    IMMICH_CLIP_DIMENSIONS,
    NAMES,
    ModelType,
    Task,
    clean_name,
    short_name,
)
from .settings import PREFIX, ConfigurationError
from .store import CONFIG, ModelKey, ModelStore

_ALIASES = f"{PREFIX}MODEL_ALIASES"
_CLIP_MODEL = f"{PREFIX}CLIP_MODEL"

_MAX_QUOTED = 200
"""The most characters of a request's name that a message repeats."""


class UnknownModelError(Exception):
    """A name that no model answers for; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class _ClipModel:
    """The model that answers every CLIP request."""

    name: str
    dimension: int

    def selectable(self) -> list[str]:
        """Return names that Immich knows and that this model can answer for, the most fitting ones."""
        if self.name in CHINESE_CLIP_IMMICH_NAMES:
            return [CHINESE_CLIP_IMMICH_NAMES[self.name]]
        if self.name in IMMICH_CLIP_DIMENSIONS:
            return [self.name]
        return [name for name, dimension in IMMICH_CLIP_DIMENSIONS.items() if dimension == self.dimension][:3]

    def advice(self) -> str:
        """Return what to do in Immich."""
        names = " or ".join(self.selectable())
        return f"select {names} in Immich" if names else f"Immich has no model of {self.dimension} dimensions to select"


class ModelNames:
    """Resolves the names in requests. An alias comes before the model for all CLIP requests.

    Both are checked when this is made.
    """

    def __init__(self, store: ModelStore, aliases: Mapping[str, str], clip_model: str | None = None) -> None:
        """Raises ConfigurationError for an alias whose two models do not serve the same purpose, and for a model for
        all CLIP requests that is none or whose dimension nobody knows."""
        self._store = store
        self._aliases: dict[tuple[Task, str], str] = {}
        for alias, name in aliases.items():
            self._add_alias(clean_name(alias), clean_name(name))
        self._clip_model = self._known_clip_model(clip_model) if clip_model else None

    def resolve(self, task: Task, name: str) -> str:
        """Return the name of the model that answers for a name as a request or a setting gives it.

        Raises UnknownModelError where none does.
        """
        cleaned = clean_name(name)
        if (alias := self._aliases.get((task, cleaned))) is not None:
            return alias
        if task == Task.CLIP and self._clip_model is not None:
            self._require_answerable(name, self._clip_model)
            return self._clip_model.name
        if cleaned in NAMES[task] or self._store.holds(task, cleaned):
            return cleaned
        raise UnknownModelError(f"Unknown model for {task}: {name[:_MAX_QUOTED]!r}.")

    def key(self, task: Task, kind: ModelType, name: str) -> ModelKey:
        """Return the key of the graph that answers for a name. Raises UnknownModelError."""
        return ModelKey(task, self.resolve(task, name), kind)

    def answers_itself(self, task: Task, name: str) -> bool:
        """Tell whether requests for a model are answered by that very model."""
        try:
            return self.resolve(task, name) == name
        except UnknownModelError:
            return False

    def substitutions(self) -> list[str]:
        """Return a sentence for each entry of the table, with the variable it comes from."""
        entries = [
            f"{task} requests for {alias} are answered by {name} ({_ALIASES})"
            for (task, alias), name in self._aliases.items()
        ]
        if (model := self._clip_model) is not None:
            others = "other " if any(task == Task.CLIP for task, _ in self._aliases) else ""
            entries.append(
                f"all {others}clip requests, for whatever name of {model.dimension} dimensions, are answered by "
                f"{model.name} ({_CLIP_MODEL}); {model.advice()}"
            )
        return entries

    def _add_alias(self, alias: str, name: str) -> None:
        task = self._task(name)
        if task is None:
            raise ConfigurationError(
                f"{_ALIASES}: {name} is neither a model that Immich knows nor one in {self._store.folder}"
            )
        known = self._task(alias)
        if known not in (None, task):
            raise ConfigurationError(f"{_ALIASES}: {alias} is a model for {known}, {name} one for {task}")
        if task == Task.CLIP:
            self._require_equal_dimension(alias, name)
        self._aliases[task, alias] = name

    def _task(self, name: str) -> Task | None:
        known = next((task for task in Task if name in NAMES[task]), None)
        return known or next((task for task in Task if self._store.holds(task, name)), None)

    def _require_equal_dimension(self, alias: str, name: str) -> None:
        # Immich sizes its vector column by the name it asked for; another length would fail every photo.
        wanted, given = self._dimension(alias), self._dimension(name)
        if wanted is None or wanted != given:
            raise ConfigurationError(
                f"{_ALIASES}: {alias} gives {wanted or 'an unknown number of'} dimensions and {name} "
                f"{given or 'an unknown number'}; a CLIP model is only answered by one of equal dimension"
            )

    def _require_answerable(self, asked: str, model: _ClipModel) -> None:
        cleaned = clean_name(asked)
        dimension = self._dimension(cleaned)
        if cleaned != model.name and dimension != model.dimension:
            raise UnknownModelError(
                f"{asked[:_MAX_QUOTED]!r} has {dimension or 'an unknown number of'} dimensions; {model.name}, which "
                f"answers every CLIP request here ({_CLIP_MODEL}), has {model.dimension}: {model.advice()}."
            )

    def _known_clip_model(self, value: str) -> _ClipModel:
        name = clean_name(value)
        if name not in CLIP_DIMENSIONS and not self._store.holds(Task.CLIP, name):
            raise ConfigurationError(
                f"{_CLIP_MODEL}={value}: no known CLIP model, and none with a graph in {self._store.folder / Task.CLIP}"
                f"{self._hint(name)}"
            )
        dimension = self._dimension(name)
        if dimension is None:
            config = self._store.model_folder(Task.CLIP, name) / CONFIG
            raise ConfigurationError(
                f"{_CLIP_MODEL}={value}: the length of its embeddings is not known; state it as embed_dim in {config}"
            )
        return _ClipModel(name, dimension)

    def _hint(self, name: str) -> str:
        """Return what may have been meant by a name that is no CLIP model's."""
        held = {held for task, held in self._store.models() if task == Task.CLIP and self._store.holds(task, held)}
        known = {*CLIP_DIMENSIONS, *held}
        short = [full for full in CHINESE_CLIP_DIMENSIONS if short_name(full).lower() == name.lower()]
        nearest = short or difflib.get_close_matches(name, known)
        return f"; did you mean {' or '.join(nearest)}?" if nearest else "; `models list --all` shows the names"

    def _dimension(self, name: str) -> int | None:
        return CLIP_DIMENSIONS.get(name) or (self._store.clip_dimension(name) if name else None)
