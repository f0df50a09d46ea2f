"""The two servers of a control plane as processes: etcd, and kube-apiserver on top of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from agent.lab.processes import LabError, Processes, wait_until
from agent.lab.wiring import NODE_ADDRESS
from tests.cluster.credentials import ISSUER, Credentials, key_of
from tests.cluster.rest import ApiError, Manifest
from tests.lab.servers import find_program

PROGRAM = "kubernetes"
LOOPBACK = "127.0.0.1"
SERVICE_RANGES = "10.96.0.0/16,fd00:10:96::/112"
ETCD_SECONDS = 30.0
STOP_SECONDS = 30.0
LOG_TAIL = 2000


class Server:
    """One server process, its options and its log."""

    def __init__(self, role: str, directory: Path, processes: Processes, *, log: str = "") -> None:
        self.role = role
        self.directory = directory
        self.log = directory / f"{log or role}.log"
        self._processes = processes
        self._process: Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process."""
        return self._running().pid

    def launch(self, options: Mapping[str, object], more: Sequence[str] = ()) -> None:
        """Start it, unless it runs; do not wait until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        program = find_program(PROGRAM)
        if program is None:
            raise LabError(f"the program {PROGRAM} is missing: `make cluster` provides it")
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with self.log.open("w") as log:
            self._process = self._processes.popen([program, self.role, *arguments, *more], stdout=log, stderr=log)

    def check(self) -> None:
        """Raise LabError when it has ended, with what it said last."""
        self._running()

    def end(self, how: signal.Signals) -> None:
        """Send it a signal that ends it, and return when it is gone; one that hangs is killed."""
        process = self._running()
        process.send_signal(how if self._state() != "T" else signal.SIGKILL)
        process.wait(STOP_SECONDS)

    def hang(self) -> None:
        """Suspend it."""
        self._running().send_signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", f"{self.role} to hang")

    def resume(self) -> None:
        """Let it go on, if it hangs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            wait_until(lambda: self._state() != "T", f"{self.role} to go on")

    def _running(self) -> Popen[str]:
        if self._process is None or self._process.poll() is not None:
            said = self.log.read_text()[-LOG_TAIL:] if self.log.exists() else "it was never started"
            raise LabError(f"{self.role} does not run: {said}")
        return self._process

    def _state(self) -> str:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]


class Etcd(Server):
    """A single etcd that listens on a socket in the file system only."""

    def __init__(self, directory: Path, processes: Processes) -> None:
        super().__init__("etcd", directory, processes)
        self._socket = directory / "etcd.socket"
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start it and return when it answers."""
        self.launch(
            {
                "data-dir": self.directory / "etcd",
                "listen-client-urls": self.url,
                "advertise-client-urls": "http://localhost:2379",  # must not be a socket; nobody goes by it
                "listen-peer-urls": f"unix://{self.directory}/peer.socket",
                "unsafe-no-fsync": "true",  # a crash of the machine ends the test anyway
                "log-level": "warn",
            }
        )
        wait_until(self._answers, "etcd to answer", seconds=ETCD_SECONDS)

    def compact(self) -> int:
        """Forget all revisions before the present one, which is returned."""
        revision = int(self._ask("/v3/maintenance/status", {})["header"]["revision"])
        self._ask("/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    def _answers(self) -> bool:
        self.check()
        with contextlib.suppress(OSError, http.client.HTTPException, ApiError):
            return "leader" in self._ask("/v3/maintenance/status", {})
        return False

    def _ask(self, path: str, body: Manifest) -> Manifest:
        """Ask by the JSON form of etcd's API."""
        with _unix_connection(self._socket) as connection:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            raw = response.read()
        if response.status != http.client.OK:
            raise ApiError(response.status, raw)
        answer: Manifest = json.loads(raw)
        return answer


def apiserver_options(etcd: str, port: int, credentials: Credentials) -> Mapping[str, object]:
    """Return the options of kube-apiserver, as far as they differ from its defaults.

    Args:
        etcd: The URL of etcd.
        port: Where to listen on loopback.
        credentials: What it and its users know each other by.
    """
    return {
        "etcd-servers": etcd,
        "etcd-compaction-interval": "0",  # history is forgotten when a test says so
        "bind-address": LOOPBACK,
        "secure-port": port,
        "permit-port-sharing": "true",  # with the socket that reserves the port
        "advertise-address": NODE_ADDRESS,  # the endpoint of the Service `kubernetes`; must not be on loopback
        "service-cluster-ip-range": SERVICE_RANGES,
        "client-ca-file": credentials.ca,
        "tls-cert-file": credentials.serving,
        "tls-private-key-file": key_of(credentials.serving),
        "service-account-issuer": ISSUER,
        "service-account-key-file": credentials.token_public_key,
        "service-account-signing-key-file": credentials.token_key,
        "authorization-mode": "RBAC",
        "shutdown-watch-termination-grace-period": "1s",  # by default watches may keep it from ending for a minute
        "disable-admission-plugins": "ServiceAccount",  # it wants accounts that kube-controller-manager would make
    }


@contextmanager
def _unix_connection(path: Path) -> Iterator[http.client.HTTPConnection]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ETCD_SECONDS)
        sock.connect(str(path))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = sock
        yield connection
