"""Lookups without end, as a busy node has them: A and AAAA from one socket, some of names beyond the cluster."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dns.message

from agent.lab import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, VIP, Lab, Pod

PAIRS_A_SECOND = 10
REPLY_SECONDS = 0.3
EVERY_UPSTREAM = 4
MAX_PAIRS = 20_000
"""More than any test needs: traffic ends by itself."""


def name_of(number: int) -> str:
    """All are equally long, so that one rule fits all of a kind."""
    return f"n{number:06}.{ANY_UPSTREAM_NAME if number % EVERY_UPSTREAM == 0 else ANY_CLUSTER_NAME}"


@dataclass
class Traffic:
    """What was asked so far."""

    pod: Pod
    server: str
    asked: int = 0
    answered: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        for number in itertools.count():
            if number > MAX_PAIRS or self._over.wait(1 / PAIRS_A_SECOND):
                return
            self._pair(name_of(number))

    def stop(self) -> None:
        self._over.set()

    def _pair(self, name: str) -> None:
        with contextlib.suppress(OSError), self.pod.udp_socket(self.server) as sock:
            sock.settimeout(REPLY_SECONDS)
            for rdtype in ("A", "AAAA"):
                sock.send(dns.message.make_query(name, rdtype).to_wire())
                self.asked += 1
            for _ in range(2):
                sock.recv(4096)
                self.answered += 1


@contextmanager
def traffic(lab: Lab, server: str = VIP) -> Iterator[Traffic]:
    """Each client asks while the block lasts."""
    flows = [Traffic(client, server) for client in lab.clients]
    threads = [threading.Thread(target=flow.run, daemon=True) for flow in flows]
    for thread in threads:
        thread.start()
    try:
        yield flows[0]
    finally:
        for flow in flows:
            flow.stop()
        for thread in threads:
            thread.join(5)
