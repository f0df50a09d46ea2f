"""CoreDNS, which can tell of its lookups itself: by its plugin `log`, or by `dnstap`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab import wait_until
from bench.load import NAMES, ZONE, name_of
from tests.lab.servers import coredns, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.lab import Lab

COREDNS_PLUGINS = ("", "log", "dnstap")
"""Each alone, and none."""
COREFILE = """
{zone} {{
    {plugin}
    hosts {hosts}
}}
"""
ADDRESSES = ("10.96.9.9", "fd00:10:96::909")


def has_coredns() -> bool:
    """Whether CoreDNS and a reader of dnstap are there."""
    return all(find_program(name) for name in ("coredns", "dnstap"))


@contextmanager
def coredns_with(plugin: str, lab: Lab, directory: Path) -> Iterator[None]:
    """Let CoreDNS serve in place of the lab's own server; what it tells is read and thrown away."""
    socket = directory / "dnstap.sock"
    hosts = directory / "hosts"
    hosts.write_text(
        "".join(f"{address} {name_of(number, ZONE)}\n" for address in ADDRESSES for number in range(NAMES))
    )
    line = f"dnstap {socket} full" if plugin == "dnstap" else plugin
    corefile = COREFILE.format(zone=ZONE, plugin=line, hosts=hosts)
    reader = None
    if plugin == "dnstap":
        reader = lab.processes.popen([str(find_program("dnstap")), "-u", str(socket), "-w", "/dev/null"])
        wait_until(socket.exists, "dnstap to listen")
    try:
        with coredns(lab.servers[0], corefile):
            yield
    finally:
        if reader is not None:
            reader.terminate()
            reader.wait()
            socket.unlink(missing_ok=True)
