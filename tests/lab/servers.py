"""Other DNS servers than dnsmasq, in a pod of the lab: CoreDNS with a Corefile, Unbound with a configuration.

    with coredns(lab.servers[0], ". { forward . 10.244.9.9 }"):
        lab.clients[0].dig("www.upstream.test")

Their programs are looked for in `.cache/bin` of the project first (`make oracles` puts them there), then in PATH.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from agent.lab.pods import DnsServer, Pod
from agent.lab.processes import LabError, end, wait_until

PROGRAMS = Path(__file__).resolve().parents[2] / ".cache" / "bin"


def find_program(name: str) -> str | None:
    """Return the path of a program that the lab does not need, but can use; None where it is missing."""
    return shutil.which(name, path=f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@contextmanager
def coredns(pod: Pod, corefile: str, *addresses: str) -> Iterator[Popen[str]]:
    """Run CoreDNS in a pod while the block lasts; see `serving`."""
    path = pod.directory / f"{pod.name}.corefile"
    path.write_text(corefile)
    with serving(pod, ["coredns", "-conf", str(path)], *addresses) as process:
        yield process


@contextmanager
def unbound(pod: Pod, configuration: str, *addresses: str) -> Iterator[Popen[str]]:
    """Run Unbound in a pod while the block lasts; see `serving`."""
    path = pod.directory / f"{pod.name}.unbound.conf"
    path.write_text(configuration)
    with serving(pod, ["unbound", "-d", "-c", str(path)], *addresses) as process:
        yield process


@contextmanager
def serving(pod: Pod, argv: Sequence[str], *addresses: str) -> Iterator[Popen[str]]:
    """Run a DNS server in a pod while the block lasts, in place of the pod's own.

    Args:
        pod: Where it runs; a DnsServer's dnsmasq is killed, and started again afterwards.
        argv: The program and its arguments.
        addresses: Where it answers, whatever it answers; the pod's own two by default.

    Raises:
        LabError: The program is missing, ended, or does not answer.
    """
    program = find_program(argv[0])
    if program is None:
        raise LabError(f"the program {argv[0]} is missing: `make oracles` provides it")
    own = pod if isinstance(pod, DnsServer) else None
    if own is not None:
        own.kill()
    try:
        log = pod.directory / f"{pod.name}.{argv[0]}.log"
        with log.open("w") as output:
            process = pod.popen([program, *argv[1:]], stdout=output, stderr=output)
        try:
            wait_until(lambda: _answers(process, pod, addresses, log), f"{argv[0]} in {pod.name} to answer")
            yield process
        finally:
            end(process)
    finally:
        if own is not None:
            own.start()


def _answers(process: Popen[str], pod: Pod, addresses: Sequence[str], log: Path) -> bool:
    if process.poll() is not None:
        raise LabError(f"the server in {pod.name} ended: {log.read_text().strip()}")
    return all(pod.gets_reply_from(address) for address in addresses or (pod.address, pod.address6))
