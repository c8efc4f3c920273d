"""TLS from a certificate and its key in PEM files: the server's side, and that of whoever asks this very server."""

import ssl
from pathlib import Path

from .settings import PREFIX, ConfigurationError, Settings

_CERT, _KEY = f"{PREFIX}TLS_CERT", f"{PREFIX}TLS_KEY"


class _EncryptedKeyError(Exception):
    """OpenSSL asks for the key's password."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what to serve with, TLS 1.2 or later; None without TLS. Raises ConfigurationError for unusable files."""
    files = tls_files(settings)
    if files is None:
        return None
    certificate, key = files
    client_context(certificate)  # says what is wrong with the certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, _readable(_KEY, key), _no_password)
    except _EncryptedKeyError:
        raise ConfigurationError(
            f"{_KEY}={key}: is encrypted, and nobody is there to give its password; decrypt it with `openssl pkey`"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"{_KEY}={key}: is the key of another certificate than {_CERT}={certificate}; name the two of a pair"
            ) from error
        raise ConfigurationError(
            f"{_KEY}={key}: cannot be used with {_CERT}={certificate} ({error.reason or error}); "
            "name the certificate's private key in PEM form"
        ) from error
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    """Return what to ask a server with that shows this certificate, by whatever name it is reached.

    Raises ConfigurationError for a file that holds none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust it without those that signed it
    try:
        context.load_verify_locations(_readable(_CERT, certificate))
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"{_CERT}={certificate}: holds no certificate ({error.reason or error}); name one in PEM form"
        ) from error
    return context


def tls_files(settings: Settings) -> tuple[Path, Path] | None:
    """Return the certificate's and the key's file, or None without TLS. Raises ConfigurationError for one alone."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return settings.tls_cert, settings.tls_key
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    given, missing = (_CERT, _KEY) if settings.tls_key is None else (_KEY, _CERT)
    raise ConfigurationError(f"{given} is set and {missing} is not: TLS takes both; set {missing}, or neither")


def _readable(variable: str, path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(
            f"{variable}={path}: cannot be read ({error.strerror}); name a PEM file that the server's user may read"
        ) from error
    return path


def _no_password() -> str:
    raise _EncryptedKeyError
