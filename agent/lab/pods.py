"""Pods: a network namespace with addresses, in which programs run and names are resolved."""

import contextlib
import hashlib
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import IO

import dns.message

from agent.lab import namespaces
from agent.lab.processes import LabError, Processes, end, run, wait_until
from agent.lab.translation import DNS_PORT, VIP

DATABASES = {socket.AF_UNSPEC: "ahosts", socket.AF_INET: "ahostsv4", socket.AF_INET6: "ahostsv6"}
"""What `getent` calls a getaddrinfo() of each family."""

READY_QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\0\5ready\7cluster\5local\0\0\1\0\1"
REPLY_SECONDS = 0.1
NSSWITCH = "hosts: dns\n"
PRIVATE_RESOLVER = """
set -e
mount --bind "$1" /etc/resolv.conf
if [ -e /etc/nsswitch.conf ]; then mount --bind "$2" /etc/nsswitch.conf; fi
shift 2
exec "$@"
"""


@dataclass(kw_only=True)
class Pod:
    """One network namespace of the lab: a pod, or the node itself."""

    name: str
    """Name of the network namespace."""
    netns_id: int
    """Inode of the network namespace."""
    address: str
    address6: str
    interface: str
    """The device inside."""
    node_interface: str
    """The device at the node's end; empty for the node itself."""
    directory: Path = field(repr=False)
    processes: Processes = field(repr=False)

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 10.0, stdin: str | None = None
    ) -> CompletedProcess[str]:
        """Run a program inside to its end; see `processes.run`."""
        return run(self._inside(argv), check=check, timeout=timeout, stdin=stdin)

    def popen(
        self, argv: Sequence[str], *, stdout: int | IO[str] = DEVNULL, stderr: int | IO[str] = DEVNULL
    ) -> Popen[str]:
        """Start a program inside that ends with the lab at the latest."""
        return self.processes.popen(self._inside(argv), stdout=stdout, stderr=stderr)

    def dig(self, name: str, rdtype: str = "A", server: str = VIP, *options: str) -> CompletedProcess[str]:
        """Look a name up with dig: one try of one second, unless the options say otherwise."""
        return self.run(["dig", "-r", f"@{server}", name, rdtype, "+time=1", "+tries=1", *options], check=False)

    def resolve(
        self,
        name: str,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        *,
        options: str = "timeout:1 attempts:2",
        nameserver: str = VIP,
        search: str = "",
        timeout: float = 10.0,
    ) -> tuple[str, ...]:
        """Resolve a name by the C library's getaddrinfo(), as a program in the pod would.

        Args:
            name: The name; the search list does not apply to one that ends in a dot.
            family: Ask for A (AF_INET), AAAA (AF_INET6; for A too when there is none) or both at once (AF_UNSPEC).
            options: The options of resolv.conf.
            nameserver: Address to ask.
            search: The search list of resolv.conf.
            timeout: Seconds getaddrinfo() may take.

        Returns:
            The addresses in the library's order; none when it failed.

        Raises:
            LabError: It took longer than `timeout`, or the lab could not give it a resolv.conf.
        """
        argv = ["getent", DATABASES[family], name]
        done = self.run(
            self.resolver_argv(argv, options=options, nameserver=nameserver, search=search),
            check=False,
            timeout=timeout,
        )
        if done.stderr:
            raise LabError(f"cannot resolve in {self.name}: {done.stderr.strip()}")
        return tuple(dict.fromkeys(line.split()[0] for line in done.stdout.splitlines()))

    def resolver_argv(
        self,
        argv: Sequence[str],
        *,
        options: str = "timeout:1 attempts:2",
        nameserver: str | Sequence[str] = VIP,
        search: str = "",
    ) -> list[str]:
        """Return a command, for `run` or `popen`, that sees a resolv.conf of its own by a private mount namespace."""
        nameservers = [nameserver] if isinstance(nameserver, str) else nameserver
        lines = [*(f"nameserver {address}" for address in nameservers), f"options {options}"]
        lines += [f"search {search}"] if search else []
        files = [self._file("\n".join([*lines, ""])), self._file(NSSWITCH)]
        return ["unshare", "--mount", "sh", "-c", PRIVATE_RESOLVER, "sh", *map(str, files), *argv]

    def ask(
        self,
        name: str,
        rdtype: str = "A",
        server: str = VIP,
        *,
        seconds: float = 0.3,
        port: int = 0,
        server_port: int = DNS_PORT,
        sock: socket.socket | None = None,
    ) -> dns.message.Message | None:
        """Send one query over UDP, once, and wait for the reply.

        Args:
            name: What to ask for.
            rdtype: The type, in its usual spelling.
            server: Address to ask.
            seconds: How long the socket stays open for the reply.
            port: The source port; 0 for any.
            server_port: The port to ask.
            sock: A socket of `udp_socket` to use, and to leave open; else one is opened for this query.

        Returns:
            None when nothing came, or the kernel refused to send or to wait (EPERM, ECONNREFUSED, EHOSTUNREACH …).
        """
        query = dns.message.make_query(name, rdtype)
        with contextlib.ExitStack() as stack:
            if sock is None:
                sock = stack.enter_context(self.udp_socket(server, port, server_port))
            sock.settimeout(seconds)
            with contextlib.suppress(OSError):
                sock.send(query.to_wire())
                return dns.message.from_wire(sock.recv(65535))
        return None

    def udp_socket(self, server: str = VIP, port: int = 0, server_port: int = DNS_PORT) -> socket.socket:
        """Return a UDP socket of this pod that is connected to a DNS server's port."""
        sock = namespaces.udp_socket(self.name, socket.AF_INET6 if ":" in server else socket.AF_INET)
        sock.bind(("", port))
        sock.connect((server, server_port))
        return sock

    def gets_reply_from(self, server: str, port: int = DNS_PORT) -> bool:
        """Tell whether a DNS server answers a query sent from here; waits a tenth of a second at most."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with namespaces.udp_socket(self.name, family) as sock, contextlib.suppress(OSError):
            sock.settimeout(REPLY_SECONDS)
            sock.connect((server, port))
            sock.send(READY_QUERY)
            return bool(sock.recv(512))
        return False

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net={namespaces.path_of(self.name)}", *argv]

    def _file(self, text: str) -> Path:
        """Return a file with this text; equal texts share one, so calls in parallel do not disturb each other."""
        path = self.directory / hashlib.sha256(text.encode()).hexdigest()[:16]
        if not path.exists():
            path.write_text(text)
        return path


@dataclass(kw_only=True)
class DnsServer(Pod):
    """A pod that runs dnsmasq."""

    arguments: Sequence[str] = field(repr=False)
    port: int = DNS_PORT
    process: Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start dnsmasq and return when it answers on both addresses."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start dnsmasq without waiting for it."""
        with self._log.open("w") as log:
            self.process = self.popen(["dnsmasq", *self.arguments], stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Return when dnsmasq answers; asked from inside the pod, so the node sees nothing of it."""
        wait_until(self._ready, f"dnsmasq in {self.name} to answer")

    def stop(self) -> None:
        """Suspend dnsmasq: queries queue up in its socket and nobody answers."""
        self._signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", f"dnsmasq in {self.name} to stop")

    def resume(self) -> None:
        """Let a suspended dnsmasq go on; it answers the queries that queued up."""
        self._signal(signal.SIGCONT)
        wait_until(lambda: self._state() != "T", f"dnsmasq in {self.name} to resume")

    def kill(self) -> None:
        """Kill dnsmasq: its port is closed when this returns."""
        end(self._running())

    def _ready(self) -> bool:
        if self._running().poll() is not None:
            raise LabError(f"dnsmasq in {self.name} ended: {self._log.read_text().strip()}")
        return all(self.gets_reply_from(address, self.port) for address in (self.address, self.address6))

    def _running(self) -> Popen[str]:
        if self.process is None:
            raise LabError(f"dnsmasq in {self.name} was never started")
        return self.process

    def _signal(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def _state(self) -> str:
        stat = Path(f"/proc/{self._running().pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    @property
    def _log(self) -> Path:
        return self.directory / f"{self.name}.log"
