"""CoreDNS, case by case: what dnstrail sees on the wire, and what CoreDNS's own dnstap shows of the same lookup."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.lab import VIP, VIP6, Lab, Pod, wait_until
from tests.kernel.conftest import Line
from tests.lab.scripted import scripted
from tests.lab.servers import coredns
from tests.oracle.conftest import lines_of, need, watching
from tests.oracle.slow_upstream import slow_upstream
from tests.oracle.tap import Tap, Told, assert_same, mask, told_by_dnstrail
from tests.verdicts.campaign import short

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

COREFILE = """
ok.test, servfail.test, refused.test, nxdomain.test, tcp.test {{
  dnstap {socket} full
  forward . {good}
}}
hosts.test {{
  dnstap {socket} full
  hosts {{
    10.0.0.1 a.hosts.test
  }}
}}
cache.test {{
  dnstap {socket} full
  cache 30
  forward . {good}
}}
prefetch.test {{
  dnstap {socket} full
  cache {{
    success 1000 5 5
    prefetch 1 10s 90%
  }}
  forward . {good}
}}
stale.test {{
  dnstap {socket} full
  cache {{
    success 1000 1 1
    serve_stale 1h
  }}
  forward . {good}
}}
silent.test {{
  dnstap {socket} full
  forward . {silent}
}}
closed.test {{
  dnstap {socket} full
  forward . {closed}
}}
unheard.test {{
  dnstap {socket} full
  forward . {unheard}
}}
two.test {{
  dnstap {socket} full
  forward . {silent} {good} {{
    policy sequential
  }}
}}
drop.test {{
  dnstap {socket} full
  erratic {{
    drop 1
  }}
}}
crowd.test {{
  dnstap {socket} full
  forward . {silent} {{
    max_concurrent 1
  }}
}}
rewrite.test {{
  dnstap {socket} full
  rewrite name asked.rewrite.test ok.elsewhere.example
  forward . {good}
}}
bare.test {{
  dnstap {socket} full
}}
truncated.test {{
  dnstap {socket} full
  forward . {good} {{
    prefer_udp
  }}
}}
blocked.test {{
  dnstap {socket} full
  acl {{
    block
  }}
  forward . {good}
}}
shed.test {{
  dnstap {socket} full
  acl {{
    drop
  }}
  forward . {good}
}}
a.example.org {{
  dnstap {socket} full
  autopath @erratic
  forward example.org {missing}
  forward . {good}
  erratic
}}
"""
LOAD_COREFILE = """
ok.load.test, nxdomain.load.test, servfail.load.test {{
  dnstap {socket} full
  forward . {slow}
}}
hosts.load.test {{
  dnstap {socket} full
  hosts {{
    10.0.0.1 a.hosts.load.test
    fd00::1 a.hosts.load.test
  }}
}}
ok.cached.load.test {{
  dnstap {socket} full
  cache {{
    success 1000 1 1
  }}
  forward . {slow}
}}
ok.bare.load.test {{
  dnstap {socket} full
}}
"""
LOAD = [
    f"{name} {rdtype}"
    for name in (
        "ok.load.test",
        "nxdomain.load.test",
        "servfail.load.test",
        "a.hosts.load.test",
        "no.hosts.load.test",
        "ok.cached.load.test",
        "ok.bare.load.test",
    )
    for rdtype in ("A", "AAAA", "TXT")
]
LOAD_ROUNDS = 7
LOAD_WAYS = [(VIP, "udp"), (VIP6, "udp"), (VIP, "tcp"), (VIP6, "tcp")]
NODE_LOCAL = "169.254.20.10"
LOST_REPLIES = """
table ip lost-replies {{
  chain forward {{
    type filter hook forward priority filter;
    ip saddr {address} udp sport 53 drop
  }}
}}
"""
NOTRACK = f"""
table ip node-local {{
  chain in {{
    type filter hook prerouting priority raw;
    ip daddr {NODE_LOCAL} notrack
  }}
  chain out {{
    type filter hook output priority raw;
    ip saddr {NODE_LOCAL} notrack
  }}
}}
"""
NODE_LOCAL_COREFILE = """
. {{
  bind {address}
  dnstap {socket} full
  forward . {vip} {{
    force_tcp
  }}
}}
"""


class Case(NamedTuple):
    name: str
    bitmap: int
    dnstap: int
    source: str | None
    attempts: int
    """Upstream exchanges on the wire before the reply."""
    rcode: str | None = "NOERROR"
    status: str = "Succeeded"
    protocol: str = "UDP"


CASES = {
    "forwarded": Case("ok.ok.test", 15, 15, "forward", 1),
    "forwarded over TCP": Case("ok.tcp.test", 15, 15, "forward", 1, protocol="TCP"),
    "does not exist upstream": Case("nxdomain.nxdomain.test", 15, 15, "forward", 1, "NXDOMAIN"),
    "hosts file": Case("a.hosts.test", 3, 3, "local", 0),
    "cache miss": Case("ok.cache.test", 15, 15, "forward", 1),
    "cache hit": Case("ok.cache.test", 3, 3, "cache", 0),
    "before a prefetch": Case("ok.prefetch.test", 15, 15, "forward", 1),
    "prefetch": Case("ok.prefetch.test", 3, 3, "cache", 0),
    "before it is stale": Case("ok.stale.test", 15, 15, "forward", 1),
    "stale": Case("ok.stale.test", 3, 3, "cache", 0),
    "silent upstream": Case("ok.silent.test", 7, 5, "server-error", 3, "SERVFAIL", "Failed"),
    "upstream replies lost": Case("ok.unheard.test", 7, 5, "server-error", 3, "SERVFAIL", "Failed"),
    "first upstream silent": Case("ok.two.test", 15, 15, "forward", 2),
    "dropped by the server": Case("ok.drop.test", 1, 1, None, 0, None, "Failed"),
    "shed by an access list": Case("ok.shed.test", 1, 1, None, 0, None, "Failed"),
    "blocked by an access list": Case("ok.blocked.test", 3, 3, None, 0, "REFUSED", "Failed"),
    "the one that is let in": Case("first.crowd.test", 7, 5, "server-error", 3, "SERVFAIL", "Failed"),
    "too many at once": Case("second.crowd.test", 3, 1, "server-error", 0, "REFUSED", "Failed"),
    "rewritten": Case("asked.rewrite.test", 15, 15, "forward", 1),
    "no plugin": Case("ok.bare.test", 3, 1, "server-error", 0, "SERVFAIL", "Failed"),
    "upstream fails": Case("servfail.servfail.test", 15, 15, "forward", 1, "SERVFAIL", "Failed"),
    "upstream refuses": Case("refused.refused.test", 15, 15, "forward", 1, "REFUSED", "Failed"),
    "TCP after truncation": Case("truncated.truncated.test", 15, 15, "forward", 2),
    "autopath": Case("ok.a.example.org", 15, 15, "forward", 3),
}
ONCE_MORE = {"ok.cache.test": 0.0, "ok.prefetch.test": 0.0, "ok.stale.test": 2.2}
"""Names asked for twice, and how many seconds later."""
SLOW = ("ok.silent.test", "ok.unheard.test", "first.crowd.test", "ok.drop.test", "ok.shed.test")
REFRESHED = ("ok.prefetch.test", "ok.stale.test")
CLOSED = "ok.closed.test"
CHAINED, CHAINED_SILENT = "ok.ok.test", "chained.silent.test"
REFRESH_SECONDS = 0.3


class Run(NamedTuple):
    sessions: dict[str, list[Line]]
    """The client's own, by name."""
    node_local: dict[str, Line]
    """Those of the client that asked NodeLocal, by name."""
    others: list[Line]
    """Those of the servers themselves."""
    load: list[Line]
    tapped: list[Told]
    node_local_tapped: list[Told]
    checks: str
    """What went to the silent upstream."""
    diagnostics: str
    node: Pod
    server: Pod


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    need("coredns", "dnstap")
    folder = tmp_path_factory.mktemp("run")
    with Lab(clients=8) as lab, ExitStack() as stack:
        client, good, silent, missing, closed, unheard, slow, loader = lab.clients
        stack.enter_context(scripted(good))
        stack.enter_context(slow_upstream(slow))
        stack.enter_context(scripted(unheard))
        lab.node.run(["nft", "-f", "-"], stdin=LOST_REPLIES.format(address=unheard.address))
        stack.enter_context(scripted(silent, always="silent"))
        stack.enter_context(scripted(missing, always="nxdomain"))
        tap, local_tap = Tap(lab), Tap(lab, "node-local")
        upstreams = {
            "good": good,
            "silent": silent,
            "missing": missing,
            "closed": closed,
            "unheard": unheard,
            "slow": slow,
        }
        addresses = {key: pod.address for key, pod in upstreams.items()}
        corefile = (COREFILE + LOAD_COREFILE).format(socket=tap.socket, **addresses)
        stack.enter_context(coredns(lab.servers[0], corefile))
        lab.node.run(["ip", "address", "add", f"{NODE_LOCAL}/32", "dev", "lo"])
        lab.node.run(["nft", "-f", "-"], stdin=NOTRACK)
        local = NODE_LOCAL_COREFILE.format(address=NODE_LOCAL, socket=local_tap.socket, vip=VIP)
        stack.enter_context(coredns(lab.node, local, NODE_LOCAL))
        checks = stack.enter_context((folder / "checks").open("w"))
        silent.popen(["tcpdump", "-i", "eth0", "-n", "-l", "udp dst port 53"], stdout=checks)
        dnstrail = stack.enter_context(watching(folder, "--timeout", "3"))
        ask_all(client, folder / "checks")
        put_load_on(loader, folder / "load")
        asked, load = len(CASES) + 3, len(LOAD) * LOAD_ROUNDS * len(LOAD_WAYS)
        lines_of(dnstrail, lab, client, asked)
        load_lines = lines_of(dnstrail, lab, loader, load)
        tapped = tap.wait_for(lambda told: sum(one.type == "CLIENT_QUERY" for one in told) >= asked - 2 + load)
        time.sleep(REFRESH_SECONDS)
        diagnostics = dnstrail.stop()
        lines = dnstrail.lines(lab)
        asked_by_client = [line for line in lines if line["Client"]["Netns"] == client.netns_id]
        direct = [line for line in asked_by_client if line["Server"]["Address"] == VIP]
        through = [line for line in asked_by_client if line["Server"]["Address"] == NODE_LOCAL]
        names = {line["Question"]["Name"] for line in direct}
        yield Run(
            sessions={name: [line for line in direct if line["Question"]["Name"] == name] for name in names},
            node_local={line["Question"]["Name"]: line for line in through},
            others=[line for line in lines if line["Client"]["Netns"] not in (client.netns_id, loader.netns_id)],
            load=load_lines,
            tapped=tapped,
            node_local_tapped=local_tap.messages(),
            checks=(folder / "checks").read_text(),
            diagnostics=diagnostics,
            node=lab.node,
            server=lab.servers[0],
        )


def put_load_on(client: Pod, data: Path) -> None:
    """The same questions again and again, many at a time: nothing but time tells them apart."""
    data.write_text("\n".join(LOAD * LOAD_ROUNDS) + "\n")
    for server, mode in LOAD_WAYS:
        client.run(["dnsperf", "-s", server, "-m", mode, "-d", str(data), "-n", "1", "-c", "4", "-q", "20"], timeout=30)


def ask_all(client: Pod, checks: Path) -> None:
    """The slow ones beside the others; these one after the other, for nothing else to lie between query and reply."""
    fast = dict.fromkeys(case.name for case in CASES.values() if case.name not in SLOW)
    with ThreadPoolExecutor(len(SLOW) + 1) as pool:
        slow = [pool.submit(client.dig, name, "A", VIP, "+time=8") for name in SLOW]
        slow.append(pool.submit(client.dig, CHAINED_SILENT, "A", NODE_LOCAL, "+time=8"))
        wait_until(lambda: "first.crowd.test" in checks.read_text(), "the upstream is asked")
        for name in fast:
            over_tcp = any(case.name == name and case.protocol == "TCP" for case in CASES.values())
            client.dig(name, "A", VIP, "+time=5", *(["+tcp"] if over_tcp else []))
            if name in ONCE_MORE:
                time.sleep(ONCE_MORE[name])
                client.dig(name, "A", VIP)
                time.sleep(REFRESH_SECONDS)
        client.dig(CHAINED, "A", NODE_LOCAL)
        client.dig(CLOSED, "A", VIP, "+time=8")
        for one in slow:
            one.result()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def session(run: Run, case: Case) -> Line:
    """The case's session: of a name asked for twice, the first is the one that was forwarded."""
    lines = run.sessions.get(f"{case.name}.", [])
    lines.sort(key=lambda line: line["Time"])
    of_name = [one for one in CASES.values() if one.name == case.name]
    assert len(lines) == len(of_name)
    return lines[of_name.index(case)]


def tapped_for(tapped: list[Told], line: Line) -> list[Told]:
    """What CoreDNS shows of this lookup until it replied; what follows renews its cache."""
    client = (line["Client"]["Address"], line["Client"]["Port"])
    # CoreDNS gives the upstream leg the client's address and id.
    its = [one for one in tapped if (one.client, one.id) == (client, line["TransactionId"])]
    types = [one.type for one in its]
    return its[: types.index("CLIENT_RESPONSE") + 1] if "CLIENT_RESPONSE" in types else its


def test_no_record_was_lost(run: Run):
    assert "; 0 records lost" in run.diagnostics


def test_bitmap_is_what_went_over_the_wire(run: Run, case: Case):
    assert session(run, case)["BitMap"] == case.bitmap


def test_dnstap_bitmap_is_what_the_dnstap_of_the_same_run_shows(run: Run, case: Case):
    line = session(run, case)
    shown = tapped_for(run.tapped, line)
    assert mask(shown) == case.dnstap, shown
    assert line["DnstapBitMap"] == case.dnstap


def test_status_rcode_and_protocol(run: Run, case: Case):
    line = session(run, case)
    assert (line["Status"], line["Rcode"], line["Protocol"]) == (case.status, case.rcode, case.protocol)


def test_answer_source_says_who_knew(run: Run, case: Case):
    assert session(run, case)["AnswerSource"] == case.source


def test_every_attempt_upstream_stays_visible(run: Run, case: Case):
    line = session(run, case)
    queries = [one for one in told_by_dnstrail(line) if one.type == "FORWARDER_QUERY"]
    assert len(queries) == case.attempts
    assert len(line["Upstream"]) == case.attempts


def test_the_clients_messages_are_those_that_dnstap_shows(run: Run, case: Case):
    line = session(run, case)
    ours = [one._replace(server="") for one in told_by_dnstrail(line) if one.type.startswith("CLIENT")]
    theirs = [one._replace(server="") for one in tapped_for(run.tapped, line) if one.type.startswith("CLIENT")]
    if case.bitmap & 2 and not case.dnstap & 2:
        ours = [one for one in ours if one.type == "CLIENT_QUERY"]
    assert_same(ours, theirs)


def test_the_upstream_messages_are_those_that_dnstap_shows(run: Run, case: Case):
    """By name, type, rcode and upstream; dnstap has the client's id instead of the wire's."""

    def upstream(told: list[Told]) -> list[tuple[str, ...]]:
        return [
            (one.type, one.server, one.name, one.rdtype, str(one.rcode))
            for one in told
            if one.type.startswith("FORWARDER")
        ]

    line = session(run, case)
    ours, theirs = upstream(told_by_dnstrail(line)), upstream(tapped_for(run.tapped, line))
    if case.name.startswith("truncated"):  # dnstap has no word of the attempt over UDP
        assert {one.protocol for one in told_by_dnstrail(line)} == {"UDP", "TCP"}
        theirs += theirs
    assert_same(ours, [one for one in theirs if ours or one[0] != "FORWARDER_QUERY"])


def test_no_session_has_an_upstream_query_twice(run: Run):
    ids = [
        (one.client, one.id, one.protocol, one.server)
        for lines in run.sessions.values()
        for line in lines
        for one in told_by_dnstrail(line)
        if one.type == "FORWARDER_QUERY"
    ]
    assert len(ids) == len(set(ids))


def test_health_checks_are_nobodys_lookups(run: Run):
    assert " NS? . " in run.checks
    told = [line for line in run.others if line["Question"]["Name"] == "."]
    assert [
        (line["Client"], line["Server"], line["Cause"], [short(hop) for hop in line["Path"]]) for line in told
    ] == []


@pytest.mark.parametrize("name", REFRESHED)
def test_a_refresh_of_the_cache_is_nobodys_lookup(run: Run, name: str):
    hit = session(run, next(case for case in CASES.values() if case.name == name and case.source == "cache"))
    client = (hit["Client"]["Address"], hit["Client"]["Port"])
    shown = [one.type for one in run.tapped if (one.client, one.id) == (client, hit["TransactionId"])]
    assert shown == ["CLIENT_QUERY", "CLIENT_RESPONSE", "FORWARDER_QUERY", "FORWARDER_RESPONSE"]
    assert [one.type for one in told_by_dnstrail(hit)] == ["CLIENT_QUERY", "CLIENT_RESPONSE"]


def test_whatever_the_servers_ask_is_asked_for_some_lookup(run: Run):
    servers = {run.server.netns_id, run.node.netns_id}
    orphans = [line for line in run.others if line["Client"]["Netns"] in servers and not line["UpstreamOf"]]
    assert [(line["Question"]["Name"], line["Protocol"]) for line in orphans] == []


def test_a_closed_port_upstream_is_a_failed_lookup_however_often_it_is_asked(run: Run):
    (line,) = run.sessions[f"{CLOSED}."]
    assert (line["Status"], line["Rcode"]) == ("Failed", "SERVFAIL")
    assert (line["BitMap"], line["DnstapBitMap"]) == (7, 5)
    assert mask(tapped_for(run.tapped, line)) == 5


def test_upstream_replies_lost_on_this_node_are_not_blamed_on_the_upstream(run: Run):
    (line,) = run.sessions["ok.unheard.test."]
    assert line["Cause"]["Code"] == "PolicyDrop"


def stages_behind(run: Run, first: Line) -> list[Line]:
    """The sessions of the second server that were made for this one of the first."""
    client = f"{first['Client']['Address']}:{first['Client']['Port']}"
    parent = {"Client": client, "TransactionId": first["TransactionId"], "Name": first["Question"]["Name"]}
    return [line for line in run.others if line["UpstreamOf"] == parent]


def test_node_local_in_front_gives_two_linked_stages(run: Run):
    first = run.node_local[f"{CHAINED}."]
    assert (first["BitMap"], first["DnstapBitMap"], first["Protocol"]) == (15, 15, "UDP")
    assert mask(tapped_for(run.node_local_tapped, first)) == 15
    (to_coredns,) = [one for one in told_by_dnstrail(first) if one.type == "FORWARDER_QUERY"]
    (second,) = stages_behind(run, first)
    assert second["Client"]["Netns"] == run.node.netns_id
    assert (second["BitMap"], second["DnstapBitMap"], second["Protocol"]) == (15, 15, "TCP")
    assert mask(tapped_for(run.tapped, second)) == 15
    assert (to_coredns.protocol, to_coredns.id) == ("TCP", second["TransactionId"])
    assert [one["Protocol"] for one in second["Upstream"]] == ["TCP"]


def test_behind_node_local_a_silent_upstream_is_seen_at_both_stages(run: Run):
    first = run.node_local[f"{CHAINED_SILENT}."]
    assert (first["Status"], first["Rcode"], first["AnswerSource"]) == ("Failed", "SERVFAIL", "server-error")
    assert (first["BitMap"], first["DnstapBitMap"]) == (7, 5)
    assert mask(tapped_for(run.node_local_tapped, first)) == 5
    assert first["Cause"]["Code"] == "UpstreamTimeout"
    seconds = stages_behind(run, first)
    queries = [one for one in told_by_dnstrail(first) if one.type == "FORWARDER_QUERY"]
    assert {line["TransactionId"] for line in seconds} == {one.id for one in queries}
    for second in seconds:
        assert second["BitMap"] & 5 == 5
        assert not second["BitMap"] & 8
        assert second["Status"] == "Failed"


def test_under_load_every_lookup_is_one_session(run: Run):
    assert len(run.load) == len(LOAD) * LOAD_ROUNDS * len(LOAD_WAYS)


def test_under_load_every_session_has_the_mask_that_dnstap_shows(run: Run):
    messages: dict[object, list[Told]] = {}
    for one in run.tapped:
        messages.setdefault((one.client, one.id), []).append(one)

    def key(line: Line) -> tuple[tuple[str, int], int]:
        return ((line["Client"]["Address"], line["Client"]["Port"]), line["TransactionId"])

    ours = [(line["Question"]["Name"], key(line), line["DnstapBitMap"]) for line in run.load]
    theirs = [(line["Question"]["Name"], key(line), mask(messages.get(key(line), []))) for line in run.load]
    assert {told for *_, told in theirs} == {1, 3, 15}
    assert_same(ours, theirs)


def test_under_load_no_lookup_is_given_the_upstream_query_of_another(run: Run):
    for line in run.load:
        assert len(line["Upstream"]) <= 1
        assert {one["Name"] for one in line["Upstream"]} <= {line["Question"]["Name"]}
