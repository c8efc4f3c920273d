"""A look at the environment's names, for those that do nothing: of other hardware, or mistyped."""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator

from .settings import PREFIX, Settings

log = logging.getLogger(__name__)

_OTHER_HARDWARE = re.compile(r"(ANN|RKNN|ROCM|OPENVINO)(_\w+)?")
_INTERNAL = {"TEST_FULL", "DEVICE_ID"}  # the stock server's own

# What Kubernetes sets for a service called `machine-learning`.
_KUBERNETES = re.compile(r"PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?|SERVICE_(HOST|PORT(_\w+)?)")


def report_environment() -> None:
    """Log one line for each variable of our prefix that has no meaning here."""
    for level, line in findings(os.environ):
        log.log(level, line)


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
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""
        yield logging.WARNING, f"{variable} is unknown and does nothing{hint}"


def known_names() -> Iterator[str]:
    """Yield the names of the settings, without the prefix; a nested one's parts joined by `__`."""
    yield from _names(Settings, "")


def _names(model: type, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        yield f"{prefix}{name}".upper()
        if hasattr(field.annotation, "model_fields"):
            yield from _names(field.annotation, f"{prefix}{name}__")
