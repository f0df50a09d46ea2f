"""A real Kubernetes control plane for tests: etcd and kube-apiserver on loopback, without controllers and kubelets.

    with ControlPlane(tmp_path) as control_plane:
        control_plane.apply([manifests.namespace("shop"), manifests.pod("shop", "cart-1", ["10.244.1.10"])])
        token = control_plane.token_for("kube-system", "dnstrail")

What controllers and kubelets do is the test's part: pods have their node and status, and Services their EndpointSlices,
because a test says so. `make cluster` builds the program. Nothing is reachable from outside this machine.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from agent.lab.processes import Processes, wait_until
from tests.cluster.credentials import Credentials, key_of
from tests.cluster.rest import Api, Manifest
from tests.cluster.servers import LOOPBACK, Etcd, Server, apiserver_options

SHORTEST_GRANTED_SECONDS = 600
START_SECONDS = 90.0


class ControlPlane(Api):
    """etcd and kube-apiserver, and an administrator's client of them; a context manager.

    Attributes:
        url: Where the API server is: on loopback, at a port that remains its own until the end.
        port: That port.
        ca_file: What its certificate is verified with.
        kubeconfig: The administrator's kubeconfig.
        directory: Everything that is written.
        etcd: What the API server keeps its objects in.
        apiserver: The API server's process.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        """Describe a control plane; entering it starts it.

        Args:
            directory: For its data, credentials and logs; a path of less than 90 bytes, because of etcd's socket.
            options: More options of kube-apiserver.
        """
        self.directory = directory
        self._options = options
        self._processes = Processes()
        self._credentials = Credentials(directory / "credentials")
        self.ca_file = self._credentials.ca
        self.kubeconfig = directory / "admin.kubeconfig"
        self.etcd = Etcd(directory, self._processes)
        self.apiserver = Server("kube-apiserver", directory, self._processes)
        self._reservation = _reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._cleanup = ExitStack()
        self._admin = self._credentials.admin, key_of(self._credentials.admin)
        super().__init__(_url(self.port), self.ca_file, certificate=self._admin)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._reservation)
            stack.callback(self._processes.close)
            self._credentials.make()
            certificate, key = map(str, self._admin)
            self.write_kubeconfig("admin", {"client-certificate": certificate, "client-key": key})
            self.etcd.start()
            self.start()
            wait_until(self._is_furnished, "the API server to make what every cluster has")
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def start(self) -> None:
        """Start the API server and return when it is ready; one that hangs goes on, a ready one is left alone.

        Raises:
            LabError: The program is missing, ended, or was not ready in time.
        """
        self.apiserver.resume()
        self.apiserver.launch(apiserver_options(self.etcd.url, self.port, self._credentials), self._options)
        wait_until(lambda: _is_ready(self.apiserver, self), "the API server to be ready", seconds=START_SECONDS)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the API server: its port is closed when this returns.

        Args:
            how: SIGTERM lets it finish requests and end watches, as in an upgrade; SIGKILL is a crash.
        """
        self.apiserver.end(how)

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the API server and start it again at the same port, with the same data."""
        self.stop(how)
        self.start()

    def hang(self) -> None:
        """Suspend the API server: the kernel keeps its connections open and accepts new ones, and nobody answers."""
        self.apiserver.hang()

    def resume(self) -> None:
        """Let a hanging API server go on."""
        self.apiserver.resume()

    def compact(self) -> int:
        """Forget all revisions before the present one, which is returned: to watch from any of them is 410 Gone.

        That takes a restart too, because the API server remembers recent changes itself.
        """
        revision = self.etcd.compact()
        self.restart()
        return revision

    @contextmanager
    def away(self) -> Iterator[Api]:
        """Keep the API server from its clients while the block lasts, and let them find a 410 afterwards.

        Yields:
            A client of another API server with the same data, of which nobody else knows: what is changed by it can
            only be learnt from a new list.
        """
        self.stop()
        with _reserve_port() as reservation:
            port: int = reservation.getsockname()[1]
            other = Server("kube-apiserver", self.directory, self._processes, log="other-kube-apiserver")
            other.launch(
                apiserver_options(self.etcd.url, port, self._credentials),
                [*self._options, "--endpoint-reconciler-type=none"],
            )
            try:
                api = Api(_url(port), self.ca_file, certificate=self._admin)
                wait_until(lambda: _is_ready(other, api), "the other API server to be ready", seconds=START_SECONDS)
                yield api
            finally:
                other.end(signal.SIGKILL)
        self.etcd.compact()
        self.start()

    def token_for(self, namespace: str, service_account: str, seconds: float = 3600) -> str:
        """Return a token for a ServiceAccount, from the TokenRequest API.

        The API grants ten minutes at least: a shorter token is signed here, with the API server's own key. Note that it
        forgives a token one minute beyond its expiry, and remembers for ten seconds that it accepted one.
        """
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": service_account, "namespace": namespace},
        }
        if seconds < SHORTEST_GRANTED_SECONDS:
            return self._credentials.sign_token(self.get(account), seconds)
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": int(seconds)},
        }
        token: str = self.request("POST", self.path_of(account, "token"), request)["status"]["token"]
        return token

    def client(self, token: str) -> Api:
        """Return a client that identifies itself by a token."""
        return Api(self.url, self.ca_file, token=token)

    def project_token(self, directory: Path, namespace: str, service_account: str, seconds: float = 3600) -> Path:
        """Write `token`, `ca.crt` and `namespace` as a kubelet does; again, to rotate them all at once.

        Returns:
            The directory, to be used as /var/run/secrets/kubernetes.io/serviceaccount.
        """
        token = self.token_for(namespace, service_account, seconds)
        _project(directory, {"token": token, "ca.crt": self.ca_file.read_text(), "namespace": namespace})
        return directory

    def write_kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        """Write a kubeconfig.

        Args:
            name: The file's name and its context's.
            user: By what the user is known: {"token": …}, {"tokenFile": …}, or a certificate's files.
        """
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": name, "user": dict(user)}],
            "contexts": [{"name": name, "context": {"cluster": "tests", "user": name}}],
            "current-context": name,
        }
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(json.dumps(configuration))
        return path

    def _is_furnished(self) -> bool:
        namespaces = _names(self.list("v1", "Namespace"))
        return {"default", "kube-system"} <= namespaces and "kubernetes" in _names(self.list("v1", "Service"))


def _is_ready(server: Server, api: Api) -> bool:
    server.check()
    return api.says_ok("/readyz")


def _names(objects: Manifest) -> set[str]:
    return {one["metadata"]["name"] for one in objects["items"]}


def _url(port: int) -> str:
    return f"https://{LOOPBACK}:{port}"


def _reserve_port() -> socket.socket:
    """Return a socket that is bound and does not listen: nobody else gets its port while the API server is away."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((LOOPBACK, 0))
    return reservation


def _project(directory: Path, files: Mapping[str, str]) -> None:
    """Write files behind the symbolic link `..data`, whose replacement changes all of them at once."""
    directory.mkdir(parents=True, exist_ok=True)
    generation = directory / f"..{len(list(directory.glob('..[0-9]*')))}"
    generation.mkdir()
    for name, text in files.items():
        (generation / name).write_text(text)
        with contextlib.suppress(FileExistsError):
            (directory / name).symlink_to(f"..data/{name}")
    fresh = directory / "..data_tmp"
    fresh.symlink_to(generation.name)
    fresh.replace(directory / "..data")
