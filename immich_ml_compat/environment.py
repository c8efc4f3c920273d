"""A look at the environment's names: those that do nothing here, of other hardware or mistyped, and old ones."""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from . import parent_stack
from .settings import PREFIX, Settings

log = logging.getLogger(__name__)

_OTHER_HARDWARE = re.compile(r"(ANN|RKNN|ROCM|OPENVINO)(_\w+)?")
_MT_PHOTOS = f"{PREFIX}MT_PHOTOS"
_INTERNAL = {"TEST_FULL", "DEVICE_ID"}  # the stock server's own

# What Kubernetes sets for a service called `machine-learning`.
_KUBERNETES = re.compile(r"PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?|SERVICE_(HOST|PORT(_\w+)?)")


def report_environment() -> None:
    """Log one line for each variable of our prefix that has no meaning here, and for each of the parent stack's."""
    for level, line in findings(os.environ):
        log.log(level, line)
    found = list(parent_stack.readings(os.environ))
    for reading in found:
        log.log(logging.INFO if reading.meaning is not None else logging.WARNING, "%s", reading)
    if any(reading.variable.today.startswith(f"{_MT_PHOTOS}_") for reading in found) and not os.environ.get(_MT_PHOTOS):
        log.info("MT Photos itself is answered with %s=true", _MT_PHOTOS)


def findings(variables: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield a level and a line for each variable of our prefix that has no meaning here."""
    known = list(known_names())
    for variable in sorted(variables):
        name = variable.upper()
        if not name.startswith(PREFIX):
            continue
        name = name.removeprefix(PREFIX)
        if name in known or name in _INTERNAL or _KUBERNETES.fullmatch(name):
            continue
        if _OTHER_HARDWARE.fullmatch(name):
            yield logging.INFO, f"{variable} is for hardware that this server does not use; ignored"
            continue
        yield logging.WARNING, f"{variable} is unknown and does nothing{_hint(name, known)}"


def known_names() -> Iterator[str]:
    """Yield the names of the settings, without the prefix; a nested one's parts joined by `__`."""
    yield from _names(Settings, "")


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if field.validation_alias is not None:
            continue
        yield f"{prefix}{name}".upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}__")


def _hint(name: str, known: Sequence[str]) -> str:
    """Return what else may have been meant by a name, which comes without the prefix."""
    aliases = {alias.removeprefix("IMMICH_"): alias for alias in _aliases()}
    nearest = difflib.get_close_matches(name, [*known, *aliases], n=1)
    if not nearest:
        return ""
    return f"; did you mean {aliases.get(nearest[0], PREFIX + nearest[0])}?"


def _aliases() -> Iterator[str]:
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, str):
            yield field.validation_alias
