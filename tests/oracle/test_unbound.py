"""dnstrail tells of Unbound's traffic what Unbound itself tells by dnstap: message by message, lookup by lookup."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.lab import BIG_NAME, VIP, VIP6, Lab
from tests.kernel.conftest import Line
from tests.lab.servers import unbound
from tests.oracle.conftest import lines_of, need, watching
from tests.oracle.tap import BITS, Tap, Told, assert_same, mask, told_by_dnstrail

pytestmark = pytest.mark.kernel

CONFIGURATION = """
server:
  username: ""
  chroot: ""
  pidfile: ""
  directory: "{directory}"
  use-syslog: no
  interface: 0.0.0.0
  interface: ::0
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  module-config: "iterator"
  num-threads: 1
  local-zone: "test." nodefault
  local-zone: "cluster.local." static
  local-data: "redis-master.default.svc.cluster.local. A 10.96.12.7"
  local-data: "redis-master.default.svc.cluster.local. AAAA fd00:10:96::c07"
  local-data: "redis-master.default.svc.cluster.local. TXT text"
  local-data: '{big}. TXT {long_text}'
dnstap:
  dnstap-enable: yes
  dnstap-socket-path: "{socket}"
  dnstap-log-client-query-messages: yes
  dnstap-log-client-response-messages: yes
  dnstap-log-forwarder-query-messages: yes
  dnstap-log-forwarder-response-messages: yes
forward-zone:
  name: "upstream.test."
  forward-addr: {upstream}
"""
LOCAL = "redis-master.default.svc.cluster.local"
UPSTREAM_EXTRA = [
    "--address=/any.upstream.test/192.0.2.1",
    "--address=/any.upstream.test/2001:db8::1",
    f"--txt-record=big.upstream.test,{','.join([200 * 'y'] * 10)}",
]
TYPES = ("A", "AAAA", "TXT")
WAYS = [(VIP, "+notcp"), (VIP, "+tcp"), (VIP6, "+notcp"), (VIP6, "+tcp")]
ROUNDS = 4
AT_ONCE = 211
TRUNCATED = 4
"""Replies for which dig comes back by TCP."""
READY = 2
"""Queries by which the lab found out that Unbound answers."""


class Lookup(NamedTuple):
    client: tuple[str, int]
    id: int
    protocol: str
    name: str
    rdtype: str


class Fate(NamedTuple):
    mask: int
    rcode: str | None


class Run(NamedTuple):
    lookups: int
    lines: list[Line]
    tapped: list[Told]
    diagnostics: str


def questions() -> list[list[str]]:
    """What dig is asked to ask: names of Unbound's own, forwarded ones, new and known, existing and not."""
    asked = []
    for number, (rdtype, (vip, way)) in product(range(ROUNDS), product(TYPES, WAYS)):
        tag = f"{number}-{rdtype}-{WAYS.index((vip, way))}".lower()
        names = [
            LOCAL,
            f"no-{tag}.cluster.local",
            f"new-{tag}.any.upstream.test",
            f"new-{tag}.any.upstream.test",
            f"no-{tag}.upstream.test",
            "www.upstream.test",
        ]
        asked += [[f"@{vip}", name, rdtype, way] for name in names]
    for vip in (VIP, VIP6):
        asked += [[f"@{vip}", name, "TXT", "+notcp"] for name in (BIG_NAME, "big.upstream.test")]
    return asked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    need("unbound", "dnstap")
    with Lab() as lab:
        lab.upstream.arguments = [*lab.upstream.arguments, *UPSTREAM_EXTRA]
        lab.upstream.kill()
        lab.upstream.start()
        tap = Tap(lab)
        configuration = CONFIGURATION.format(
            directory=lab.clients[0].directory,
            socket=tap.socket,
            upstream=lab.upstream.address,
            big=BIG_NAME,
            long_text=" ".join([200 * "x"] * 10),
        )
        with unbound(lab.servers[0], configuration):
            yield watched(lab, tap, tmp_path_factory.mktemp("watch"))


def watched(lab: Lab, tap: Tap, folder: Path) -> Run:
    client = lab.clients[0]
    asked = questions()
    options = [word for one in asked for word in (*one, "+time=2", "+tries=1")]
    burst = folder / "burst"
    burst.write_text("".join(f"burst-{number}.any.upstream.test A\n" for number in range(AT_ONCE)))
    expected = len(asked) + TRUNCATED + AT_ONCE
    with watching(folder) as dnstrail:
        done = client.run(["dig", "-r", *options], timeout=60)
        assert done.stdout.count("Query time") == len(asked)
        client.run(["dnsperf", "-s", VIP, "-d", str(burst), "-n", "1", "-c", "3", "-q", "30"], timeout=30)
        tapped = tap.wait_for(lambda told: sum(one.type == "CLIENT_RESPONSE" for one in told) >= expected + READY)
        lines = lines_of(dnstrail, lab, client, expected)
        diagnostics = dnstrail.stop()
    return Run(expected, lines, [one for one in tapped if one.name != "ready.cluster.local."], diagnostics)


def comparable(message: Told) -> Told:
    """What Unbound knows: not its own address, nor the one it was asked under.

    Its port upstream it notes per interface, so it tells the newest one of replies, and the one before over TCP.
    """
    if message.type.startswith("CLIENT"):
        return message._replace(server="")
    known = message.type == "FORWARDER_QUERY" and message.protocol == "UDP"
    return message._replace(client=("", message.client[1] if known else 0))


def fates_by_dnstap(tapped: list[Told]) -> dict[Lookup, Fate]:
    """What dnstap shows of each lookup: the messages of its own and, while it was open, those upstream."""
    open_lookups: dict[tuple[str, str], Lookup] = {}
    messages: dict[Lookup, list[Told]] = {}
    for one in tapped:
        question = (one.name, one.rdtype)
        if one.type.startswith("CLIENT"):
            lookup = Lookup(one.client, one.id, one.protocol, one.name, one.rdtype)
            open_lookups[question] = lookup
        messages.setdefault(open_lookups[question], []).append(one)
    return {lookup: Fate(mask(told), told[-1].rcode) for lookup, told in messages.items()}


def fates_by_dnstrail(lines: list[Line]) -> dict[Lookup, Fate]:
    return {
        Lookup(
            (line["Client"]["Address"], line["Client"]["Port"]),
            line["TransactionId"],
            line["Protocol"],
            line["Question"]["Name"],
            line["Question"]["Type"],
        ): Fate(line["BitMap"], line["Rcode"])
        for line in lines
    }


def test_no_record_was_lost(run: Run):
    assert "; 0 records lost" in run.diagnostics


def test_every_lookup_is_one_session(run: Run):
    theirs = fates_by_dnstap(run.tapped)
    assert len(theirs) == run.lookups
    assert_same(list(fates_by_dnstrail(run.lines)), list(theirs))
    assert len(run.lines) == run.lookups


def test_every_session_has_the_mask_and_the_rcode_that_dnstap_shows(run: Run):
    ours, theirs = fates_by_dnstrail(run.lines), fates_by_dnstap(run.tapped)
    assert {fate.mask for fate in theirs.values()} == {3, 15}
    assert_same(list(ours.items()), list(theirs.items()))


@pytest.mark.parametrize("kind", BITS)
def test_both_tell_of_the_same_messages_with_the_same_ids(run: Run, kind: str):
    ours = [comparable(one) for line in run.lines for one in told_by_dnstrail(line) if one.type == kind]
    theirs = [comparable(one) for one in run.tapped if one.type == kind]
    assert_same(ours, theirs)
    assert len(theirs) > AT_ONCE


def test_the_dnstap_mask_of_a_server_that_taps_all_it_writes_is_the_wire_mask(run: Run):
    assert all(line["DnstapBitMap"] == line["BitMap"] for line in run.lines)


def test_every_session_succeeded(run: Run):
    assert {line["Status"] for line in run.lines} == {"Succeeded"}
