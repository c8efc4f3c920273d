"""Who may ask: whoever has the key, and without a key only this machine itself."""

import hmac
from ipaddress import ip_address

from fastapi import Request

from ..body import BodyError
from ..forms import missing

_FOREIGN = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")
"""What comes with it was passed on by a proxy, or is a web page's: both only look like this machine."""


class ApiKey:
    """Lets requests with the right `api-key` through."""

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def __call__(self, request: Request) -> None:
        """Raises what is answered with 401, or 422 where no key came, as mt-photos-ai does."""
        self.check_place(request)
        if self._key is None:
            return
        given = request.headers.get("api-key")
        if given is None:
            raise missing("header", "api-key")
        if not hmac.compare_digest(given.encode(), self._key):
            raise BodyError(401, "Invalid API key")

    def check_place(self, request: Request) -> None:
        """Raises what is answered with 401 where there is no key, and the request is not this machine's."""
        if self._key is None and not _is_local(request):
            raise BodyError(401, "Without API_AUTH_KEY only requests from the server's own machine are answered")


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FOREIGN):
        return False
    address = ip_address(request.client.host.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
