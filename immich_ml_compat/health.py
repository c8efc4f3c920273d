"""The `health` command: asks the server that the same settings start, as an image's HEALTHCHECK does.

It runs every half minute beside the server, so that it loads nothing but the settings and Python's own HTTP client.
"""

import ssl
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address

from .settings import Settings
from .tls import client_context, tls_files

_TIMEOUT_S = 2.0
"""As long as Immich's own probe waits."""

_MOST_SHOWN = 500


def health(settings: Settings) -> int:
    """Return 0 where the server answers and can work; else say on standard error why not, in one line, and return 1.

    Raises ConfigurationError for TLS files that cannot be used.
    """
    ailment = find_ailment(settings)
    if ailment is not None:
        print(" ".join(ailment.split()), file=sys.stderr)  # what a stranger answers may have lines
    return int(ailment is not None)


def find_ailment(settings: Settings) -> str | None:
    """Ask `/ping`; return what is wrong, or None."""
    files = tls_files(settings)
    host = _address(settings.host)
    scheme = "http" if files is None else "https"
    where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"
    if settings.port == 0:
        return f"{where}: with IMMICH_PORT=0 nobody knows the server's port; set one"
    context = None if files is None else client_context(files[0])
    token = settings.access_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    try:
        with closing(_connection(host, settings.port, context)) as connection:
            connection.request("GET", "/ping", headers=headers)
            answer = connection.getresponse()
            return _judge(where, answer.status, answer.read(_MOST_SHOWN).decode(errors="replace"))
    except ssl.SSLCertVerificationError as error:
        return (
            f"{where}: the certificate that it shows is not to be trusted by the file of "
            f"MACHINE_LEARNING_TLS_CERT ({error.verify_message}); after a change of files, restart the server"
        )
    except ssl.SSLError as error:
        return f"{where}: does not speak TLS as it should ({error.reason or error}); is it started with these settings?"
    except TimeoutError:
        return f"{where}: no answer within {_TIMEOUT_S:g} s"
    except (OSError, HTTPException, UnicodeError) as error:
        return f"{where}: cannot be asked ({getattr(error, 'strerror', None) or error or type(error).__name__})"


def _connection(host: str, port: int, context: ssl.SSLContext | None) -> HTTPConnection:
    if context is None:
        return HTTPConnection(host, port, timeout=_TIMEOUT_S)
    return HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


def _address(host: str) -> str:
    """Return where to reach a server that listens there: on every address means on loopback too."""
    host = host.strip("[]")
    try:
        everywhere = ip_address(host).is_unspecified
    except ValueError:  # a name
        everywhere = False
    return "127.0.0.1" if everywhere else host


def _judge(where: str, status: int, body: str) -> str | None:
    if (status, body) == (200, "pong"):
        return None
    if status == 404:
        return f"{where}: answers 404; it is another server, or its MACHINE_LEARNING_ACCESS_TOKEN is another one"
    return f"{where}: answers {status}: {body}"
