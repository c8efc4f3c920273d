"""TLS, and the health check with and without it, against real server processes."""

import io
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from immich_ml_compat.cli import main
from immich_ml_compat.settings import ConfigurationError, Settings
from immich_ml_compat.tls import client_context, server_context

from .server import SETTING, Server, running_server

ROOT = Path(__file__).parents[1]
READ = {kind: {"modelName": "PP-OCRv6_small"} for kind in ("detection", "recognition")}
CERT, KEY, TOKEN = (f"MACHINE_LEARNING_{name}" for name in ("TLS_CERT", "TLS_KEY", "ACCESS_TOKEN"))


@dataclass(frozen=True)
class Pair:
    """A certificate's file and its key's."""

    cert: Path
    key: Path

    def settings(self) -> Settings:
        return Settings(tls_cert=self.cert, tls_key=self.key)


def issue(folder: Path, name: str, authority: trustme.CA | None = None) -> Pair:
    """Make a certificate for a host that is not this machine."""
    issued = (authority or trustme.CA()).issue_cert("ml.example.org")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return Pair(cert, key)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return issue(tmp_path_factory.mktemp("tls"), "server")


# ---------------------------------------------------------------- files


def refused(settings: Settings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        server_context(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_tls() -> None:
    assert server_context(Settings()) is None


def test_both_or_neither(pair: Pair) -> None:
    assert (
        refused(Settings(tls_cert=pair.cert))
        == f"{CERT} is set and {KEY} is not: TLS takes both; set {KEY}, or neither"
    )
    assert (
        refused(Settings(tls_key=pair.key)) == f"{KEY} is set and {CERT} is not: TLS takes both; set {CERT}, or neither"
    )


def test_files_that_cannot_be_used(pair: Pair, tmp_path: Path) -> None:
    text, other, encrypted = tmp_path / "text", issue(tmp_path, "other"), tmp_path / "encrypted"
    text.write_text("hello")
    key = load_pem_private_key(pair.key.read_bytes(), None)
    password = BestAvailableEncryption(b"secret")
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password))
    for settings, start, cause in (
        (Settings(tls_cert=tmp_path / "no", tls_key=pair.key), f"{CERT}={tmp_path / 'no'}: ", "No such file"),
        (Settings(tls_cert=tmp_path, tls_key=pair.key), f"{CERT}={tmp_path}: ", "Is a directory"),
        (Settings(tls_cert=text, tls_key=pair.key), f"{CERT}={text}: ", "holds no certificate"),
        (Settings(tls_cert=pair.key, tls_key=pair.key), f"{CERT}={pair.key}: ", "holds no certificate"),
        (Settings(tls_cert=pair.cert, tls_key=tmp_path / "no"), f"{KEY}={tmp_path / 'no'}: ", "No such file"),
        (Settings(tls_cert=pair.cert, tls_key=text), f"{KEY}={text}: ", "name the certificate's private key"),
        (Settings(tls_cert=pair.cert, tls_key=pair.cert), f"{KEY}={pair.cert}: ", "name the certificate's private key"),
        (Settings(tls_cert=pair.cert, tls_key=other.key), f"{KEY}={other.key}: ", f"another certificate than {CERT}="),
        (Settings(tls_cert=pair.cert, tls_key=encrypted), f"{KEY}={encrypted}: ", "is encrypted"),
    ):
        message = refused(settings)
        assert message.startswith(start), message
        assert cause in message, message


def test_the_server_does_not_start_with_them(pair: Pair) -> None:
    variables = {name: value for name, value in os.environ.items() if not SETTING.match(name)}
    variables |= {CERT: str(pair.cert), KEY: "/no/key.pem", "IMMICH_PORT": "0"}
    command = [sys.executable, "-m", "immich_ml_compat", "serve"]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"{KEY}=/no/key.pem: cannot be read (No such file or directory); ")
    assert "Traceback" not in run.stderr


# ---------------------------------------------------------------- serving


@pytest.fixture(scope="module")
def secure(pair: Pair, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with TLS and a token."""
    variables = {CERT: str(pair.cert), KEY: str(pair.key), TOKEN: "s3cret-t0ken"}
    folder = tmp_path_factory.mktemp("secure")
    with running_server(cache, folder, variables, root="/s3cret-t0ken", verify=client_context(pair.cert)) as server:
        yield server


def test_it_speaks_tls(secure: Server, pair: Pair) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    trust = client_context(pair.cert)
    assert httpx.get(f"{secure.url}/ping", verify=trust).status_code == 404
    assert httpx.get(f"{secure.url}/s3cret-t0ken/ping", verify=trust).text == "pong"
    with pytest.raises(httpx.TransportError):
        httpx.get(secure.url.replace("https:", "http:"))
    assert httpx.get(f"{secure.url}/s3cret-t0ken/ping", verify=trust).text == "pong"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_1_2_is_the_least(secure: Server, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this side would refuse the old one itself
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", secure.port), timeout=20) as plain:
        if version < ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert|version|EOF"):
                context.wrap_socket(plain)
        else:
            with context.wrap_socket(plain) as connection:
                assert connection.version() == version.name.replace("_", ".")


def test_a_too_large_body_is_told_under_tls_too(secure: Server, pair: Pair) -> None:
    request = f"POST /s3cret-t0ken/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {10**9}\r\n\r\n".encode()
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", secure.port), timeout=20) as plain,
        client_context(pair.cert).wrap_socket(plain) as connection,
    ):
        connection.sendall(request)
        while received := connection.recv(65536):
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")


# ---------------------------------------------------------------- health


def health(port: int, **variables: str) -> tuple[int, str]:
    """Run the command with a server's port and further settings; return its exit code and what it says."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        for name in list(os.environ):
            if SETTING.match(name):
                patch.delenv(name)
        for name, value in ({"IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": str(port)} | variables).items():
            patch.setenv(name, value)
        code = main(["health"])
    assert said.getvalue().count("\n") == code
    return code, said.getvalue().removesuffix("\n")


def test_the_command(server: Server) -> None:
    environment = {name: value for name, value in os.environ.items() if not SETTING.match(name)}
    for port, expected in ((str(server.port), (0, "", "")), ("nope", (1, "", "IMMICH_PORT=nope: "))):
        command = [sys.executable, "-m", "immich_ml_compat", "health"]
        variables = environment | {"IMMICH_PORT": port, "IMMICH_HOST": "127.0.0.1"}
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
        assert (run.returncode, run.stdout, run.stderr[: len(expected[2]) or None]) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "[::]", "0.0.0.0", "localhost"])
def test_a_server_that_is_well(server: Server, host: str) -> None:
    assert health(server.port, IMMICH_HOST=host) == (0, "")


def test_health_knows_tls_and_token(secure: Server, pair: Pair, tmp_path: Path) -> None:
    tls = {CERT: str(pair.cert), KEY: str(pair.key)}
    known = {**tls, TOKEN: "s3cret-t0ken"}
    assert health(secure.port, **known) == (0, "")
    code, said = health(secure.port, **known | {TOKEN: "an0ther"})
    assert (code, said) == (
        1,
        f"{secure.url}: answers 404; it is another server, or its {TOKEN} is another one",
    )
    other = issue(tmp_path, "other")
    code, said = health(secure.port, **known | {CERT: str(other.cert), KEY: str(other.key)})
    assert code == 1
    assert said.startswith(f"{secure.url}: the certificate that it shows is not to be trusted by the file of {CERT} (")
    code, said = health(secure.port, **{TOKEN: "s3cret-t0ken"})
    assert code == 1
    assert said.startswith(f"{secure.url.replace('https', 'http')}: cannot be asked (")
    assert health(secure.port, **known | {KEY: ""})[0] == 1, "one of the two"


def test_a_server_without_tls_that_should_have_it(server: Server, pair: Pair) -> None:
    code, said = health(server.port, **{CERT: str(pair.cert), KEY: str(pair.key)})
    assert code == 1
    assert "does not speak TLS as it should" in said


@pytest.mark.parametrize("host", ["no-such-host.invalid", "é..é", "a b", "x" * 300, "::g"])
def test_hosts_that_are_none(host: str) -> None:
    code, said = health(3003, IMMICH_HOST=host)
    assert code == 1
    assert ": cannot be asked (" in said


def test_settings_that_cannot_be_used(server: Server) -> None:
    """2 would have a meaning of its own for Docker."""
    assert health(server.port, IMMICH_PORT="nope")[0] == 1
    assert health(server.port, IMMICH_PORT="0") == (
        1,
        "http://127.0.0.1:0: with IMMICH_PORT=0 nobody knows the server's port; set one",
    )
    code, said = health(server.port, **{TOKEN: "se/cret"})
    assert code == 1
    assert "cret" not in said


def test_a_server_that_hangs_or_is_gone(tmp_path: Path) -> None:
    with running_server(tmp_path, tmp_path) as server:
        assert health(server.port) == (0, "")
        server.process.send_signal(signal.SIGSTOP)
        try:
            assert health(server.port) == (1, f"{server.url}: no answer within 2 s")
        finally:
            server.process.send_signal(signal.SIGCONT)
    assert health(server.port) == (1, f"{server.url}: cannot be asked (Connection refused)")


def test_a_server_that_can_infer_nothing(tmp_path: Path) -> None:
    """`/ping` answers 503 then, with the cause."""
    broken = "import os, sys\nif 'immich_ml_compat.worker' in sys.orig_argv: os._exit(7)\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    with running_server(tmp_path, tmp_path, {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}) as server:
        assert health(server.port) == (0, ""), "no worker was needed yet"
        assert server.predict({"ocr": READ}, b"x").status_code == 503
        code, said = health(server.port)
        assert code == 1
        assert said.startswith(f"{server.url}: answers 503: ")
        assert said.endswith(" ".join(httpx.get(f"{server.url}/ping").text.split()))


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200"]
)
def test_what_is_no_server_of_this_kind(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]
        asking = pool.submit(health, port)
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
        code, said = asking.result(30)
    assert code == 1
    assert said.startswith(f"http://127.0.0.1:{port}: ")
