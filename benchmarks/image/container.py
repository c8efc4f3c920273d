"""Starts a built image as a container engine would: its own mounts and processes, few of root's rights, nothing to
write to but its volume and /dev/shm. The network is the machine's."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .building import Image, mounted

_CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
"""Those that Docker leaves to a container's root."""

GRAPHICS_GROUP = 105
"""Whose a graphics device is; it has no driver behind it."""

_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Container:
    """A running container."""

    image: Image
    root: Path
    process: "subprocess.Popen[bytes]"
    log: Path
    environment: Mapping[str, str]

    def first_process(self) -> int:
        """Return the number, on this machine, of the process that the container takes for the first."""
        return _children(self.process.pid)[0]

    def processes(self) -> list[dict[str, str]]:
        """Return the status of each of its processes (`/proc/*/status`), by field."""
        pids = [self.first_process()]
        for pid in pids:
            pids += _children(pid)
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line) for text in texts]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root, like `docker exec`."""
        enter = [
            "nsenter",
            "-t",
            str(self.first_process()),
            "--mount",
            "--pid",
            f"--root=/proc/{self.first_process()}/root",
        ]
        return subprocess.run(
            [*enter, "--wdns=/", *command], env=dict(self.environment), capture_output=True, text=True, check=False
        )

    def stop(self, within_s: float) -> int:
        """Send SIGTERM to the first process, as `docker stop` does, and return the exit code; raises TimeoutExpired."""
        os.kill(self.first_process(), signal.SIGTERM)
        return self.process.wait(within_s)


@contextmanager
def running(
    image: Image,
    volume: Path,
    folder: Path,
    *,
    environment: Mapping[str, str],
    user: str | None = None,
    command: Sequence[str] = (),
    capabilities: Sequence[str] = _CAPABILITIES,
) -> Iterator[Container]:
    """Start a container whose /cache is `volume`; `folder` is for its log and mounts. `user` is `UID:GID`."""
    root, log = folder / "root", folder / "log"
    root.mkdir(parents=True, exist_ok=True)
    bounds = ["setpriv", f"--bounding-set=-all{''.join(f',+{name}' for name in capabilities)}", "--inh-caps=-all"]
    enter = ["chroot", *(["--userspec", user, "--groups="] if user else []), str(root)]
    start = [*bounds, *enter] if user else [*enter, *bounds]  # without the right to chroot it must come first
    start += [*image.entrypoint, *(command or image.command)]
    variables = {**image.environment, **environment}
    script = "\n".join(["set -e", *(shlex.join(step) for step in _mounts(image, root, volume))])
    script += (
        f"\ncd /\nexec env -i {shlex.join(f'{name}={value}' for name, value in variables.items())} {shlex.join(start)}"
    )
    isolated = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", script]
    with log.open("wb") as output, subprocess.Popen(isolated, stdout=output, stderr=output) as process:
        try:
            yield Container(image, root, process, log, variables)
        finally:
            for pid in _children(process.pid) if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)  # the first process, and with it all of them
            process.wait()


def _mounts(image: Image, root: Path, volume: Path) -> Iterator[list[str]]:
    """Yield the commands that lay out the container's files, within its own mount namespace."""
    yield ["mount", "--make-rprivate", "/"]
    yield mounted(image, root)
    yield ["mount", "-t", "proc", "proc", f"{root}/proc"]
    yield ["mount", "--rbind", "/sys", f"{root}/sys"]
    yield ["mount", "-t", "tmpfs", "-o", "mode=755,size=64k", "dev", f"{root}/dev"]
    for name in _DEVICES:
        yield ["touch", f"{root}/dev/{name}"]
        yield ["mount", "--bind", f"/dev/{name}", f"{root}/dev/{name}"]
    yield ["mkdir", f"{root}/dev/dri", f"{root}/dev/shm"]
    yield ["mknod", "--mode=660", f"{root}/dev/dri/renderD128", "c", "226", "128"]
    yield ["chown", f"0:{GRAPHICS_GROUP}", f"{root}/dev/dri/renderD128"]
    yield ["mount", "-t", "tmpfs", "-o", "mode=1777,size=64m", "shm", f"{root}/dev/shm"]
    yield ["mount", "-o", "remount,ro", f"{root}/dev"]
    yield ["mount", "--bind", str(volume), f"{root}/cache"]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(log: Path, text: str, within_s: float) -> bool:
    """Wait until the log holds a text; return whether it did."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if text in log.read_text():
            return True
        time.sleep(0.1)
    return False
