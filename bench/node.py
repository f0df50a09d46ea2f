"""What a node may have many of: network namespaces and rules."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab import Lab

TABLE = "bench"
FIRST_PORT = 20_000
"""Of rules that match nothing that is sent here."""


@contextmanager
def many_namespaces(count: int) -> Iterator[None]:
    """So many network namespaces more, each with nothing but its loopback device."""
    lab_id = namespaces.new_lab_id()
    namespaces.create(lab_id, [f"{lab_id}-{number}" for number in range(count)])
    try:
        yield
    finally:
        namespaces.remove(lab_id)


@contextmanager
def many_rules(lab: Lab, count: int) -> Iterator[None]:
    """So many rules more that each packet through the node is compared with."""
    if not count:
        yield
        return
    rules = (f"add rule inet {TABLE} forward udp sport {FIRST_PORT + number} drop" for number in range(count))
    chain = f"add chain inet {TABLE} forward {{ type filter hook forward priority 0 ; }}"
    script = "\n".join((f"add table inet {TABLE}", chain, *rules))
    lab.node.run(["nft", "-f", "-"], stdin=script)
    try:
        yield
    finally:
        lab.node.run(["nft", "delete", "table", "inet", TABLE])
