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

    secret: bool = False
    """Whether its value is told to nobody."""


def _port(value: str) -> str | None:
    return value if value.isascii() and value.isdigit() and 0 < int(value) < 65536 else None


def _seconds(value: str) -> str | None:
    return value if value.isascii() and value.isdigit() and int(value) > 0 else None


def _device(providers: str) -> str | None:
    """Read a list of execution providers, of which the first that the machine has is used."""
    names = [name.strip() for name in providers.split(",")]
    if names[0] == "CUDAExecutionProvider":
        return "auto" if "CPUExecutionProvider" in names else "cuda"
    return "cpu" if names[0] == "CPUExecutionProvider" else None


# Of two that say the same, the first that is set counts.
_VARIABLES = (
    Variable(
        "CLIP_MODEL",
        "MACHINE_LEARNING_CLIP_MODEL",
        lambda value: value if value in CHINESE_CLIP_DIMENSIONS else _CHINESE_CLIP.get(value),
        f"one of {', '.join(_CHINESE_CLIP)}; for another model set MACHINE_LEARNING_CLIP_MODEL",
    ),
    Variable("CLIP_DOWNLOAD_ROOT", "MACHINE_LEARNING_CLIP_DOWNLOAD_ROOT"),
    Variable("DEVICE", "MACHINE_LEARNING_DEVICE", {"cuda": "cuda", "cpu": "cpu"}.get, "cuda or cpu", generic=True),
    Variable(
        "ONNX_PROVIDERS",
        "MACHINE_LEARNING_DEVICE",
        _device,
        "a list that begins with CUDAExecutionProvider or CPUExecutionProvider",
        generic=True,
    ),
    Variable("API_AUTH_KEY", "MACHINE_LEARNING_MT_PHOTOS_API_KEY", secret=True),
    Variable("MT_PHOTOS_API_KEY", "MACHINE_LEARNING_MT_PHOTOS_API_KEY", secret=True),
    Variable("RECOGNITION_MODEL", "MACHINE_LEARNING_MT_PHOTOS_FACE_MODEL"),
    Variable("DETECTION_THRESH", "MACHINE_LEARNING_MT_PHOTOS_FACE_MIN_SCORE"),
    Variable("HTTP_PORT", "MACHINE_LEARNING_MT_PHOTOS_PORT", _port, "a port", generic=True),
    Variable("SERVER_RESTART_TIME", "MACHINE_LEARNING_MODEL_TTL", _seconds, "seconds, 1 or more"),
    Variable("PORT", "IMMICH_PORT", _port, "a port", generic=True),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A variable of the parent stack that is set: what it means here."""

    variable: Variable
    value: str
    meaning: str | None
    """The value of our variable; None where it is ignored."""

    overruled_by: str | None = None
    """What is set as well, and counts."""

    def __str__(self) -> str:
        if self.overruled_by is not None:
            return f"{self.assignment} is ignored: {self.overruled_by} is set"
        if self.meaning is None:
            return f"{self.assignment} is ignored: it takes {self.variable.takes}"
        value = "" if self.variable.secret else f"={self.meaning}"
        return f"{self.assignment} is understood as {self.variable.today}{value}"

    @property
    def assignment(self) -> str:
        """The variable as it was set."""
        return self.variable.name if self.variable.secret else f"{self.variable.name}={self.value}"


def readings(variables: Mapping[str, str]) -> Iterator[Reading]:
    """Yield the parent stack's variables among the environment's. Raises ValueError for a value that cannot be used."""
    given = {name.upper(): value.strip() for name, value in variables.items() if value.strip()}
    counting = {name: name for name in given}
    for variable in _VARIABLES:
        value = given.get(variable.name)
        if value is None:
            continue
        if variable.today in counting:
            yield Reading(variable, value, None, counting[variable.today])
            continue
        meaning = variable.meaning(value)
        if meaning is None and not variable.generic:
            raise ValueError(f"{variable.name}={value}: takes {variable.takes}")
        if meaning is not None:
            counting[variable.today] = variable.name
        yield Reading(variable, value, meaning)
