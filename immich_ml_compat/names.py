"""Which model answers which name: the known names, those on disk, and the aliases of the settings."""

from collections.abc import Mapping

from .catalog import CLIP_DIMENSIONS, NAMES, ModelType, Task, clean_name
from .settings import PREFIX, ConfigurationError
from .store import ModelKey, ModelStore

_VARIABLE = f"{PREFIX}MODEL_ALIASES"


class ModelNames:
    """Resolves the names in requests. Aliases are checked when this is made."""

    def __init__(self, store: ModelStore, aliases: Mapping[str, str]) -> None:
        """Raises ConfigurationError for an alias whose two models do not serve the same purpose."""
        self._store = store
        self._aliases: dict[tuple[Task, str], str] = {}
        for alias, name in aliases.items():
            self._add_alias(clean_name(alias), clean_name(name))

    def resolve(self, task: Task, name: str) -> str | None:
        """Return the name of the model that answers for `name`, or None where nothing does."""
        if (alias := self._aliases.get((task, name))) is not None:
            return alias
        return name if name in NAMES[task] or self._store.holds(task, name) else None

    def substitutions(self) -> list[str]:
        """Return a sentence for each alias in force."""
        return [f"{task} requests for {alias} are answered by {name}" for (task, alias), name in self._aliases.items()]

    def key(self, task: Task, kind: ModelType, name: str) -> ModelKey | None:
        """Return the key of the graph that answers for a name as a request or a setting gives it, or None."""
        resolved = self.resolve(task, clean_name(name))
        return ModelKey(task, resolved, kind) if resolved is not None else None

    def _add_alias(self, alias: str, name: str) -> None:
        task = self._task(name)
        if task is None:
            raise ConfigurationError(
                f"{_VARIABLE}: {name} is neither a model that Immich knows nor one in {self._store.folder}"
            )
        known = self._task(alias)
        if known not in (None, task):
            raise ConfigurationError(f"{_VARIABLE}: {alias} is a model for {known}, {name} one for {task}")
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
                f"{_VARIABLE}: {alias} gives {wanted or 'an unknown number of'} dimensions and {name} "
                f"{given or 'an unknown number'}; a CLIP model is only answered by one of equal dimension"
            )

    def _dimension(self, name: str) -> int | None:
        return CLIP_DIMENSIONS.get(name) or self._store.clip_dimension(name)
