"""Serving: the listening socket and the HTTP server on it."""

import logging
import socket

import uvicorn

from .http_api import create_app
from .service import Service
from .settings import ConfigurationError, Settings

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until stopped by SIGINT or SIGTERM. Raises ConfigurationError where the address cannot be used."""
    listener = listen(settings.host, settings.port)
    service = Service(settings)
    app = create_app(service.answer, max(1, settings.request_threads))
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        timeout_keep_alive=settings.http_keepalive_timeout_s,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    log.info("Serving on %s", f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. `[::]` takes IPv4 as well, and is all of IPv4 on a machine without IPv6.

    Raises ConfigurationError where the address is in use or not this machine's.
    """
    host = host.strip("[]")
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    dual = host == "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # a name that no host can have is a TypeError further down
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"IMMICH_HOST={host} IMMICH_PORT={port}: cannot listen there ({cause}); choose another"
        ) from error
