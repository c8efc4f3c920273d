"""Who may ask: with an access token, only requests that carry it are answered; all others get one and the same 404.

Immich can send no header of its own, so the token may be the first segment of the path, `/<token>/predict`: what
`new URL('predict', 'http://host:3003/<token>/')` makes. Others send `Authorization: Bearer <token>`, clients of the
parent stack's gateway `X-Auth-Token: <token>`.
"""

import hmac
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

_REFUSAL = b'{"detail":"Not Found"}'


class Access:
    """An ASGI application that lets requests with the token through to another one."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """`token` is what the setting takes: characters that no URL escapes."""
        self._app = app
        self._digest = _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 to a stranger, without a look at the body."""
        admitted = scope if scope["type"] == "lifespan" else self._admit(scope)
        if admitted is None:
            await _refuse(send)
        else:
            await self._app(admitted, receive, send)

    def _admit(self, scope: Scope) -> Scope | None:
        """Return the request as the application is to see it, the token's segment as its root; None: a stranger's."""
        segment, slash, rest = scope["path"].lstrip("/").partition("/")
        # Both are always compared, so that the time tells nothing of either.
        in_path = self._is_token(segment.encode()) and slash == "/"
        in_header = [self._is_token(credentials) for credentials in _credentials(scope)]
        if in_path:
            root = f"/{segment}"
            return {**scope, "root_path": root, "path": f"{root}/{rest.lstrip('/')}"}
        return scope if any(in_header) else None

    def _is_token(self, candidate: bytes) -> bool:
        # Digests are of one length, which the time of comparing would tell otherwise.
        return hmac.compare_digest(_digest(candidate), self._digest)


def _digest(value: bytes) -> bytes:
    return sha256(value).digest()


def _credentials(scope: Scope) -> list[bytes]:
    """Return the credentials of each `Authorization: Bearer …` and each `X-Auth-Token`."""
    values = (value.strip().partition(b" ") for name, value in scope["headers"] if name == b"authorization")
    bearers = [credentials.strip() for scheme, _, credentials in values if scheme.lower() == b"bearer"]
    return bearers + [value.strip() for name, value in scope["headers"] if name == b"x-auth-token"]


async def _refuse(send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_REFUSAL)).encode()),
        (b"connection", b"close"),  # what else the stranger sends is not even received
    ]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})
