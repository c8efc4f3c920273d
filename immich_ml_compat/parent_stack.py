"""The parent stack's variables, which have no prefix: what each is called here, and what its values mean.

A new one is a line in the table. Our own variable wins where both are set.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .catalog import CHINESE_CLIP_DIMENSIONS, short_name

_CHINESE_CLIP = {short_name(name): name for name in CHINESE_CLIP_DIMENSIONS}


def _same(value: str) -> str:
    return value


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the parent stack, and how it is read here."""

    name: str
    today: str
    """The variable that says the same here."""

    meaning: Callable[[str], str | None] = _same
    """That variable's value for one of this; None for what this does not take."""

    takes: str = ""
    """What it takes, in words."""

    generic: bool = False
    """Whether the name is so common that something else may have set it: then another value is no mistake."""


_VARIABLES = (
    Variable(
        "CLIP_MODEL",
        "MACHINE_LEARNING_CLIP_MODEL",
        lambda value: value if value in CHINESE_CLIP_DIMENSIONS else _CHINESE_CLIP.get(value),
        f"one of {', '.join(_CHINESE_CLIP)}; for another model set MACHINE_LEARNING_CLIP_MODEL",
    ),
    Variable("CLIP_DOWNLOAD_ROOT", "MACHINE_LEARNING_CLIP_DOWNLOAD_ROOT"),
    Variable("DEVICE", "MACHINE_LEARNING_DEVICE", {"cuda": "cuda", "cpu": "cpu"}.get, "cuda or cpu", generic=True),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A variable of the parent stack that is set: what it means here."""

    variable: Variable
    value: str
    meaning: str | None
    """The value of our variable; None where it is ignored."""

    is_overruled: bool = False
    """Whether our own variable is set as well."""

    def __str__(self) -> str:
        if self.is_overruled:
            return f"{self.assignment} is ignored: {self.variable.today} is set"
        if self.meaning is None:
            return f"{self.assignment} is ignored: it takes {self.variable.takes}"
        return f"{self.assignment} is understood as {self.variable.today}={self.meaning}"

    @property
    def assignment(self) -> str:
        """The variable as it was set."""
        return f"{self.variable.name}={self.value}"


def readings(variables: Mapping[str, str]) -> Iterator[Reading]:
    """Yield the parent stack's variables among the environment's. Raises ValueError for a value that cannot be used."""
    given = {name.upper(): value.strip() for name, value in variables.items() if value.strip()}
    for variable in _VARIABLES:
        value = given.get(variable.name)
        if value is None:
            continue
        if variable.today in given:
            yield Reading(variable, value, None, is_overruled=True)
            continue
        meaning = variable.meaning(value)
        if meaning is None and not variable.generic:
            raise ValueError(f"{variable.name}={value}: takes {variable.takes}")
        yield Reading(variable, value, meaning)
