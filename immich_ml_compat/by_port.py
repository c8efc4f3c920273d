"""Several listening ports of one process, each with an application of its own."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class ByPort:
    """An ASGI application that passes requests on by the port that they came to."""

    def __init__(self, app: ASGIApp, others: Mapping[int, ASGIApp]) -> None:
        """`app` gets what came to none of the `others`, and the start and the end of the process."""
        self._app = app
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        _, port = scope.get("server") or ("", -1)
        await self._others.get(port, self._app)(scope, receive, send)
