"""What the kernel program joins is what it sends one by one, and what its log has no room for is counted."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from agent.capture.live import Capture
from agent.capture.lookups import LOOKUPS
from agent.hop.record import RESPONSE, UDP
from agent.lab import VIP, VIP6, Lab, drop_queries, drop_replies
from agent.lab.zones import ANY_CLUSTER_NAME, BIG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.hop.record import Hop

pytestmark = pytest.mark.kernel

RING_BYTES = 4 << 20
NAME = "redis-master.default.svc.cluster.local"
LONG_NAME = f"{'x' * 40}.{'y' * 40}.{ANY_CLUSTER_NAME}"
ALIKE = ("captured_bytes", "stat_invalid", "stat_insert_failed", "stat_drop", "ct_status")
"""Fields of the detail that differ between two programs that see one packet: bytes come once, counters go on."""


@pytest.fixture(scope="module", params=["iptables", pytest.param("nftables", marks=pytest.mark.slow)])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(request.param) as built:
        yield built


def drained(capture: Capture) -> list[Hop]:
    """All hops so far."""
    hops: list[Hop] = []
    time.sleep(0.1)  # what was sent has left the queues: the capture itself is asked, and not waited for
    capture.hurry()
    while capture.drain(hops.append, lambda _loss: None):
        pass
    return hops


def drained_of(capture: Capture, lab: Lab) -> list[Hop]:
    """All hops in the lab's namespaces so far."""
    known = {namespace.netns_id for namespace in (lab.node, *lab.clients, *lab.servers, lab.upstream)}
    return [hop for hop in drained(capture) if hop.netns in known]


def identity(hop: Hop) -> tuple[object, ...]:
    """All that both programs must say of one packet at one place."""
    detail = hop.detail._asdict()
    for field in ALIKE:
        del detail[field]
    return (
        hop.netns,
        hop.ifindex,
        hop.event,
        hop.flags,
        hop.family,
        hop.protocol,
        hop.skb,
        hop.fragment,
        *detail.values(),
    )


def messages(hops: list[Hop]) -> Counter[tuple[bool, bytes]]:
    """The bytes of each UDP message, however often they came."""
    found = {(bool(hop.flags & RESPONSE), hop.payload(hop.detail)) for hop in hops if hop.protocol == UDP}
    return Counter(message for message in found if message[1])


def everything(lab: Lab) -> None:
    """Lookups of all kinds, good and bad."""
    client = lab.clients[0]
    for server in (VIP, VIP6):
        client.dig(NAME, "A", server)
        client.dig(NAME, "AAAA", server)
        client.dig("nothing.cluster.local", "A", server)
        client.dig(LONG_NAME, "A", server)
        client.dig(BIG_NAME, "TXT", server)
        client.dig("www.upstream.test", "A", server)
    assert client.resolve(NAME, socket.AF_UNSPEC, options="timeout:1 attempts:1")
    for fault in (drop_queries, drop_replies):
        with fault(lab):
            client.dig(NAME, "A", VIP)


def test_joined_hops_are_those_that_come_one_by_one(lab: Lab):
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(Capture([53], RING_BYTES))
        if not joined.joins:
            pytest.skip("this kernel's programs join nothing")
        plain = stack.enter_context(Capture([53], RING_BYTES, joined=False))
        assert not plain.joins
        everything(lab)
        there, here = drained_of(joined, lab), drained_of(plain, lab)
    assert len(here) > 100
    assert Counter(map(identity, there)) == Counter(map(identity, here))
    assert messages(there) == messages(here)
    assert [hop.ts_ns for hop in there] == sorted(hop.ts_ns for hop in there)


def test_lookups_for_which_the_log_has_no_room_are_lost_counted_and_not_sent_one_by_one(lab: Lab):
    beyond = 500
    one = [NAME, "A", f"@{VIP}", "+tries=1", "+time=2", "+short"]
    with Capture([53], RING_BYTES) as capture:
        if not capture.joins:
            pytest.skip("this kernel's programs join nothing")
        before = capture.counters()
        lab.clients[0].run(["dig", *(one * (LOOKUPS + beyond))], timeout=120)
        after = capture.counters()
        # On a slow machine the log has room again for the last hops of some.
        assert after.log_full - before.log_full >= 7 * beyond
        assert sum(after.lost.values()) == 0
        assert capture.backlog_bytes < RING_BYTES // 4
        assert capture.losses.total >= 7 * beyond
        assert len(drained(capture)) >= 7 * LOOKUPS  # other lookups of this machine may take a part
        lab.clients[0].dig(NAME, "A", VIP)
        time.sleep(0.2)  # longer than SHED_NS, so that the next lookup counts as one of another time
        lab.clients[0].dig(NAME, "A", VIP)
        assert len(drained_of(capture, lab)) >= 8
