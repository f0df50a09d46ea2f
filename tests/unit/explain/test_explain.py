"""agent.explain: every rule speaks where its evidence is, and keeps silent elsewhere."""

import re
from dataclasses import replace

import pytest

from agent.context.counters import ConntrackCounters, Ipvs, NetnsCounters
from agent.explain.causes import CAUSES
from agent.explain.findings import NAMES
from agent.explain.rules import explain
from agent.hop.endpoint import Endpoint
from tests.unit.conftest import BACKEND, HOST, NODE, POD, UPSTREAM, VIP, packed

PREROUTING = ("nf_hook_slow", "ip_rcv")
INPUT = ("nf_hook_slow", "ip_local_deliver")
FORWARD = ("nf_hook_slow", "ip_forward")
POSTROUTING = ("nf_hook_slow", "ip_output")
OUTPUT = ("nf_hook_slow", "__ip_local_out")
CONFIRMED = 8
NO_CARRIER = 0b111
SECOND_BACKEND = ("10.244.1.54", 53)


class Around:
    """What the kernel is said to count."""

    def __init__(self, before=None, now=None, ipvs=None, read=None):
        self.looks = before, now
        self.tables = ipvs
        self.read = read

    def counters(self, _netns, _since_ns):
        return self.looks

    def ipvs(self, netns):
        return self.tables if netns == NODE else None

    def was_read(self, _message):
        return self.read


def look(entries, drop=0, insert_failed=0, limit=1000, udp=None):
    rows = (ConntrackCounters(0, insert_failed, drop, 0),)
    return NetnsCounters(0, entries, limit, rows, udp or {}, None, None)


def counted(hops, *stats):
    """Give the last hops these conntrack counters of one CPU: (invalid, insert_failed, drop)."""
    first = len(hops) - len(stats)
    return [*hops[:first], *(replace(hop, stat=stat) for hop, stat in zip(hops[first:], stats, strict=True))]


def lost_query(world, after=2, reason="NETFILTER_DROP", location="nf_hook_slow", stack=(), **evidence):
    return world.outcome(world.dropped(world.Lookup().query(), after, reason, location, stack, **evidence))


def lost_reply(world, after=2, reason="NETFILTER_DROP", location="nf_hook_slow", stack=(), **evidence):
    lookup = world.Lookup()
    return world.outcome(lookup.query(), world.dropped(lookup.reply(), after, reason, location, stack, **evidence))


def refused(world, stack, before, after, **evidence):
    """A query that a hook of the node refused, between these two readings of the counters."""
    hops = world.dropped(world.Lookup().query(), 2, stack=stack, **evidence)
    return world.outcome(counted(hops, before, after))


def untracked(hops):
    return [replace(hop, conntrack=None) for hop in hops]


def sample_loss(world):
    world.table.record_loss(world.START, world.now + world.SECOND)
    return world.outcome(world.Lookup().query())


def vanished_reply(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    return world.outcome(lookup.query(start), lookup.reply(start + world.MS)[:2])


def silent_upstream(world):
    lookup = world.Lookup()
    asked = world.Lookup(
        shape="client", client_netns=world.SERVER, client=("10.244.1.53", 41000), vip=("100.100.2.136", 53)
    )
    failed = lookup.reply(world.START + 6 * world.SECOND, rcode=2, aa=False)
    return world.outcome(lookup.query(), asked.query(world.START + world.MS), failed)


def relayed_error(world):
    lookup = world.Lookup()
    asked = lookup.onward(port=41000)
    relayed = [
        *asked.query(world.START + world.MS),
        *asked.reply(world.START + 2 * world.MS, rcode=2, aa=False),
        *lookup.reply(world.START + 3 * world.MS, rcode=2, aa=False, ra=True),
    ]
    return world.outcome(lookup.query(), relayed)


def upstream_without_tcp(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    refused = world.Tcp(lookup.onward(port=33001)).refuse(start + world.MS)
    return world.outcome(lookup.query(start), refused, lookup.reply(start + 3 * world.MS, rcode=2, aa=False))


def late_reply(world):
    lookup = world.Lookup()
    reply = lookup.reply(world.START + 6 * world.SECOND)
    return world.outcome(lookup.query(), world.dropped(reply, 4, "NO_SOCKET", "__udp4_lib_rcv"))


def stale_entry(world, ct_info=0, status=CONFIRMED, *, other_answers=True):
    """A query over an old entry to a backend that is gone; meanwhile another client is answered by the other one."""
    lookup = world.Lookup()
    hops = [
        replace(hop, conntrack=(*hop.conntrack[:4], ct_info), ct_status=status) if hop.conntrack else hop
        for hop in world.dropped(lookup.query(), 3, "IP_INNOROUTES", "ip_error")
    ]
    other = world.Lookup(client=("172.20.2.26", 5000), identifier=7)
    other.backend = SECOND_BACKEND
    answered = [*other.query(world.START + world.MS), *other.reply(world.START + 2 * world.MS)]
    stale = world.outcomes(hops, answered if other_answers else [])
    return next(one for one in stale if one.session.key.client.address == packed(POD[0]))


def service_without_endpoints(world):
    """After a lookup that was translated, the next one is refused under the Service's own address."""
    world.outcome(world.Lookup(port=2000).both())
    hops = world.dropped(world.Lookup().query(world.now + world.MS), 2, stack=FORWARD)
    return world.outcome(hops, [world.icmp(hops[-1], 3, 3, HOST[0])])


def stale_ipvs(world):
    return lost_query(world, 2, stack=INPUT)


def tables(bound=SECOND_BACKEND, servers=(BACKEND,)):
    virtual, client = Endpoint(packed(VIP[0]), 53), Endpoint(packed(POD[0]), POD[1])
    listed = frozenset(Endpoint(packed(address), port) for address, port in servers)
    return Ipvs({(17, virtual): listed}, {(17, client, virtual): Endpoint(packed(bound[0]), bound[1])})


def unusable_reply(world, data):
    lookup = world.Lookup()
    return world.outcome(lookup.query(), lookup.reply(content=data))


def unexpected_source(world):
    lookup, start = world.Lookup(dnat=False, vip=BACKEND), world.START
    reply = [replace(hop, source=SECOND_BACKEND) for hop in lookup.reply()]
    return world.outcome(lookup.query(), reply, lookup.query(start + world.SECOND))


CASES = {
    "UnexpectedSource": (unexpected_source, "high"),
    "MalformedReply": (lambda world: unusable_reply(world, world.Lookup().answer()[:15]), "medium"),
    "MismatchedReply": (lambda world: unusable_reply(world, world.Lookup(identifier=7).answer()), "medium"),
    "LateReply": (late_reply, "high"),
    "FragmentLost": (lambda world: lost_query(world, 2, "FRAG_REASM_TIMEOUT", "ip_expire"), "high"),
    "UpstreamTCPUnavailable": (upstream_without_tcp, "high"),
    "UpstreamTimeout": (silent_upstream, "high"),
    "CaptureLoss": (sample_loss, "high"),
    "NoEndpoints": (service_without_endpoints, "medium"),
    "NoListener": (lambda world: lost_query(world, 4, "NO_SOCKET", "__udp4_lib_rcv"), "high"),
    "PolicyDrop": (lambda world: lost_query(world, 2, "NETFILTER_DROP", "nft_do_chain"), "high"),
    "KernelDrop": (lambda world: lost_query(world, 2, "TCP_OLD_DATE", "ip_forward"), "medium"),
    "ServerNoReply": (lambda world: world.outcome(world.Lookup().query()), "high"),
    "LeftNode": (lambda world: world.outcome(world.Lookup(shape="client").query()), "medium"),
    "ServerError": (lambda world: world.outcome(world.Lookup().both(rcode=2, aa=False)), "medium"),
    "UpstreamError": (relayed_error, "high"),
    "Unknown": (vanished_reply, "low"),
    "ConntrackTableFull": (lambda world: refused(world, PREROUTING, (0, 0, 5), (0, 0, 6)), "high"),
    "ConntrackRace": (
        lambda world: refused(
            world, POSTROUTING, (0, 5, 5), (0, 6, 6), conntrack=world.Lookup().tracked(response=False), ct_status=0x1B0
        ),
        "high",
    ),
    "StaleConntrackEntry": (stale_entry, "medium"),
    "IPVSStaleBackend": (stale_ipvs, "high"),
    "ServerSocketOverflow": (lambda world: lost_query(world, 4, "SOCKET_RCVBUFF", "udp_queue_rcv_one_skb"), "high"),
    "ClientSocketOverflow": (lambda world: lost_reply(world, 4, "SOCKET_RCVBUFF", "udp_queue_rcv_one_skb"), "high"),
    "InterfaceDown": (
        lambda world: lost_query(world, 3, "QDISC_DROP", "__dev_queue_xmit", device_state=NO_CARRIER),
        "high",
    ),
    "NoRoute": (lambda world: lost_query(world, 2, "IP_INNOROUTES", "ip_error"), "high"),
    "NeighbourFailure": (lambda world: lost_query(world, 2, "NEIGH_FAILED", "neigh_invalidate"), "high"),
    "ReversePathFilter": (lambda world: lost_query(world, 2, "IP_RPFILTER", "ip_rcv"), "high"),
    "ChecksumError": (lambda world: lost_query(world, 4, "UDP_CSUM", "__udp4_lib_rcv"), "high"),
    "QueueOverflow": (lambda world: lost_query(world, 3, "QDISC_DROP", "__dev_queue_xmit"), "high"),
}
AROUND = Around(ipvs=tables())


@pytest.mark.parametrize("code", CASES)
def test_each_cause_is_told_with_evidence_a_remedy_and_all_its_words(world, code):
    make, confidence = CASES[code]
    cause = explain(make(world), AROUND if code == "IPVSStaleBackend" else Around()).cause
    assert (cause.code, cause.confidence) == (code, confidence)
    assert cause.evidence
    assert all(cause.evidence)
    assert cause.remedy.startswith(CAUSES[code].remedy.partition("{")[0])
    assert cause.doc == f"docs/causes.md#{code.lower()}"
    for text in (cause.text, cause.remedy, *cause.evidence):
        assert not re.search(r"[{}]|None|\n", text)


def test_every_code_has_words_and_a_case_here():
    assert set(CAUSES) == set(CASES)


def test_words_are_whole_sentences():
    for text in CAUSES.values():
        assert re.fullmatch(r"[A-Z].*\.", text.sentence)
        assert re.fullmatch(r"[A-Z].*\.", text.remedy)


def test_a_success_has_no_cause_and_no_remarks(world):
    assert explain(world.outcome(world.Lookup().both())) == (None, [], [])


def test_a_name_that_does_not_exist_has_no_cause(world):
    assert explain(world.outcome(world.Lookup().both(rcode=3))).cause is None


def test_the_listener_is_missed_where_the_query_arrived(world):
    cause = explain(lost_query(world, 4, "NO_SOCKET", "__udp4_lib_rcv")).cause
    assert "10.244.1.53" in cause.text
    assert "port 53" in cause.text


def test_a_client_that_closed_its_socket_is_no_missing_listener(world):
    assert explain(lost_reply(world, 4, "NO_SOCKET", "__udp4_lib_rcv")).cause.code != "NoListener"


@pytest.mark.parametrize(
    ("reason", "location", "words"),
    [
        ("TC_INGRESS", "", "tc program (ingress)"),
        ("TC_EGRESS", "", "tc program (egress)"),
        ("NETFILTER_DROP", "nft_do_chain", "nftables"),
        ("XDP", "", "XDP program"),
        ("NOT_SPECIFIED", "veth_xdp_rcv_skb", "XDP program"),
    ],
)
@pytest.mark.parametrize("lose", [lost_query, lost_reply])
def test_a_policy_is_named_where_the_kernel_shows_it(world, lose, reason, location, words):
    cause = explain(lose(world, 2, reason, location)).cause
    assert cause.code == "PolicyDrop"
    assert words in cause.text
    assert str(world.NODE) in cause.text
    assert ("query" if lose is lost_query else "reply") in cause.text


def test_netfilter_alone_accuses_with_reserve(world):
    # The same place drops for a full connection table.
    cause = explain(lost_query(world, 2, stack=PREROUTING)).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", "medium")
    assert any("full connection table" in line for line in cause.evidence)


def test_counters_that_did_not_rise_prove_a_rule(world):
    cause = explain(refused(world, PREROUTING, (3, 4, 5), (3, 4, 5))).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", "high")
    assert "PREROUTING" in cause.text


def test_counters_of_another_cpu_prove_nothing(world):
    hops = counted(world.dropped(world.Lookup().query(), 2, stack=PREROUTING, cpu=1), (0, 0, 5), (0, 0, 6))
    assert explain(world.outcome(hops)).cause.confidence == "medium"


def test_counters_that_wrapped_around_still_rise_by_one(world):
    cause = explain(refused(world, PREROUTING, (0, 0, 0xFFFFFFFF), (0, 0, 0))).cause
    assert cause.code == "ConntrackTableFull"


def test_an_invalid_packet_that_a_rule_drops_is_the_rules_and_is_called_invalid(world):
    cause = explain(refused(world, FORWARD, (3, 0, 0), (4, 0, 0))).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", "high")
    assert any("INVALID" in line for line in cause.evidence)


@pytest.mark.parametrize(
    ("before", "now", "code", "confidence"),
    [
        (look(990, drop=5), look(1000, drop=6), "ConntrackTableFull", "high"),
        (None, look(1000, drop=6), "ConntrackTableFull", "medium"),
        (look(10, drop=6), look(11, drop=6), "PolicyDrop", "high"),
        (look(10, drop=5), look(11, drop=6), "PolicyDrop", "medium"),
        (None, None, "PolicyDrop", "medium"),
    ],
)
def test_what_a_program_of_the_node_sends_is_judged_by_the_counters_of_its_namespace(
    world, before, now, code, confidence
):
    hops = world.dropped(world.Lookup(shape="host").query(), 1, stack=OUTPUT)
    (drop,) = counted(untracked(hops[-1:]), (0, 0, 6))
    cause = explain(world.outcome([drop]), Around(before, now)).cause
    assert (cause.code, cause.confidence) == (code, confidence)


def test_a_tracked_packet_in_forward_can_only_have_met_a_rule(world):
    tracked = world.Lookup().tracked(response=False)
    cause = explain(lost_query(world, 2, stack=FORWARD, conntrack=tracked)).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", "high")


def test_an_old_entry_is_not_stale_while_nobody_else_answers(world):
    assert explain(stale_entry(world, other_answers=False)).cause.code == "NoRoute"


def test_a_new_entry_is_not_stale(world):
    assert explain(stale_entry(world, ct_info=2)).cause.code == "NoRoute"


def test_an_entry_that_never_got_into_the_table_is_not_stale(world):
    assert explain(stale_entry(world, status=0)).cause.code == "NoRoute"


def test_ipvs_that_binds_the_client_to_a_listed_server_is_not_stale(world):
    assert explain(stale_ipvs(world), Around(ipvs=tables(bound=BACKEND))).cause.code == "PolicyDrop"


def test_a_full_receive_buffer_is_told_with_its_figures(world):
    namespaces = Around(look(1, udp={"RcvbufErrors": 3}), look(1, udp={"RcvbufErrors": 5}))
    outcome = lost_query(world, 4, "SOCKET_RCVBUFF", "udp_queue_rcv_one_skb", socket=(4352, 2304))
    evidence = explain(outcome, namespaces).cause.evidence
    assert any("4352 of 2304" in line for line in evidence)
    assert any("RcvbufErrors" in line and "+2" in line for line in evidence)


def test_a_frame_for_another_host_is_a_loss_only_where_the_address_lives(world):
    cause = explain(lost_query(world, 4, "OTHERHOST", "ip_rcv")).cause
    assert (cause.code, cause.confidence) == ("NeighbourFailure", "high")
    other = worlds_flood(world)
    assert explain(other).cause is None


def worlds_flood(world):
    """A healthy lookup whose query a bridge floods to another pod too."""
    lookup, start = world.Lookup(port=1234), world.now + world.SECOND
    hops = lookup.query(start)
    flooded = replace(hops[-1], netns=4026532999, reason="OTHERHOST", location="ip_rcv", event=3)
    return world.outcome(hops, [flooded], lookup.reply(start + world.MS))


def test_a_reply_from_an_address_that_was_not_asked_has_bypassed_the_translation(world):
    lookup = world.Lookup()
    reply = world.dropped(lookup.reply(), 4, "NO_SOCKET", "__udp4_lib_rcv")
    reply = [*reply[:-2], *(replace(hop, source=BACKEND) for hop in reply[-2:])]
    cause = explain(world.outcome(lookup.query(), reply)).cause
    assert (cause.code, cause.confidence) == ("KernelDrop", "high")
    assert BACKEND[0] in cause.text
    assert VIP[0] in cause.text


def test_what_is_too_large_for_the_next_link_says_so(world):
    cause = explain(lost_reply(world, 2, "PKT_TOO_BIG", "ip_forward")).cause
    assert (cause.code, cause.confidence) == ("KernelDrop", "high")
    assert "MTU" in cause.text


def test_a_query_that_connection_tracking_calls_invalid_was_damaged(world):
    world.outcome(world.Lookup(port=2000).both())
    hops = untracked(world.Lookup(shape="client").query(world.now + world.MS))
    before, after = counted(hops[1:], (3, 0, 0), (4, 0, 0))
    after = replace(after, destination=VIP)
    cause = explain(world.outcome([hops[0], before, after])).cause
    assert (cause.code, cause.confidence) == ("ChecksumError", "medium")


@pytest.mark.parametrize(("read", "words"), [(True, "has read it"), (False, "stopped"), (None, None)])
def test_where_the_kernel_shows_it_a_silent_server_is_told_from_one_that_reads_nothing(world, read, words):
    evidence = explain(world.outcome(world.Lookup().query()), Around(read=read)).cause.evidence
    assert any("read it" in line for line in evidence) is (words is not None)
    assert words is None or any(words in line for line in evidence)


ICMP = {
    (3, 3): ("NoListener", "high"),
    (3, 13): ("PolicyDrop", "high"),
    (3, 10): ("PolicyDrop", "high"),
    (3, 0): ("NoRoute", "high"),
    (3, 1): ("NeighbourFailure", "medium"),
    (3, 4): ("KernelDrop", "high"),
    (11, 0): ("KernelDrop", "high"),
}


@pytest.mark.parametrize("kind", ICMP)
def test_who_lost_it_beyond_the_node_may_say_so_by_icmp(world, kind):
    hops = world.Lookup(shape="client").query()
    sender = VIP[0] if ICMP[kind][0] == "NoListener" else UPSTREAM[0]
    cause = explain(world.outcome(hops, [world.icmp(hops[0], *kind, sender, mtu=1280)])).cause
    assert (cause.code, cause.confidence) == ICMP[kind]
    assert any(sender in line and f"({kind[0]}/{kind[1]})" in line for line in cause.evidence)


def test_a_port_that_another_host_calls_unreachable_may_have_a_listener(world):
    hops = world.Lookup(shape="client").query()
    cause = explain(world.outcome(hops, [world.icmp(hops[0], 3, 3, UPSTREAM[0])])).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", "medium")
    assert any("did not come from the server" in line for line in cause.evidence)


def test_icmp_does_not_overrule_what_this_node_itself_dropped(world):
    hops = world.dropped(world.Lookup().query(), 2, "TC_EGRESS", "")
    cause = explain(world.outcome(hops, [world.icmp(hops[0], 3, 1, HOST[0])])).cause
    assert cause.code == "PolicyDrop"
    assert any("host unreachable" in line for line in cause.evidence)


def test_icmp_about_an_answered_lookup_is_no_cause(world):
    lookup = world.Lookup()
    hops = lookup.both()
    assert explain(world.outcome(hops, [world.icmp(hops[0], 3, 3, HOST[0])])).cause is None


def test_icmp_that_quotes_only_the_ports_finds_its_lookup(world):
    hops = world.Lookup(shape="client").query()
    error = replace(world.icmp(hops[0], 3, 13, HOST[0]), content=b"")
    assert explain(world.outcome(hops, [error])).cause.code == "PolicyDrop"


def test_icmp_about_nothing_known_is_counted(world):
    world.feed([replace(world.icmp(world.Lookup().query()[0], 3, 3, HOST[0]), content=b"")])
    assert world.table.counts.stray_errors == 1


def test_the_other_half_of_a_pair_is_told(world):
    lost = world.dropped(world.Lookup(rdtype=28, identifier=2).query(world.START + 10 * world.US), 2, "TC_EGRESS", "")
    answered = world.Lookup(identifier=1)
    outcomes = world.outcomes(answered.query(), lost, answered.reply())
    verdicts = {one.session.key.rdtype: explain(one) for one in outcomes}
    assert verdicts[1].cause is None
    assert any("the A query of the same socket was answered" in line for line in verdicts[28].cause.evidence)


def test_a_pair_with_one_id_collides(world):
    four, six = world.Lookup(rdtype=1, identifier=5), world.Lookup(rdtype=28, identifier=5)
    outcomes = world.outcomes(four.query(), six.query(world.START + world.US), four.reply(), six.reply())
    assert [explain(one).findings for one in outcomes] == [["TransactionIdCollision"]] * 2


def test_names_of_a_search_path_are_told_from_names_that_nobody_knows(world):
    first = world.Lookup(name="www.example.com.default.svc.cluster.local.", identifier=1)
    last = world.Lookup(name="www.example.com.", identifier=2, port=POD[1] + 1)
    stray = world.Lookup(name="nobody.example.com.", identifier=3, port=POD[1] + 2)
    outcomes = world.outcomes(
        first.both(rcode=3), last.both(world.START + world.MS), stray.both(world.START + 2 * world.MS, rcode=3)
    )
    found = {one.session.key.id: explain(one).findings for one in outcomes}
    assert found == {1: ["SearchPathNXDOMAIN"], 2: [], 3: ["NameNotFound"]}


def test_who_was_slow_is_told(world):
    lookup = world.Lookup()
    slow = world.outcome(lookup.query(), lookup.reply(world.START + 2 * world.SECOND))
    assert explain(slow) == (None, ["SlowServer"], [])


def test_every_finding_is_of_the_specification():
    assert set(NAMES) <= {
        "Retransmitted",
        "SlowServer",
        "SlowUpstream",
        "UpstreamRetried",
        "AmbiguousUpstream",
        "Truncated",
        "SearchPathNXDOMAIN",
        "NameNotFound",
        "StatefulSetName",
        "HeadlessTooLarge",
        "ParallelNameservers",
        "QueryNotSeen",
        "ManyMessages",
        "NodeLocalBypassed",
        "TransactionIdCollision",
        "WrongAnswer",
        "ServerImbalance",
        "ServersDisagree",
        "ContradictoryAnswers",
        "LargerThanOffered",
        "DNSSECFailure",
        "ExtendedError",
        "SearchPathNODATA",
        "SearchDomainAnswered",
        "ExternalNameNotFound",
    }


@pytest.mark.parametrize(
    ("stack", "hook"),
    [
        (("nf_hook_slow", "ip_rcv"), "PREROUTING"),
        (("nf_hook_slow", "ip_local_deliver"), "INPUT"),
        (("nft_do_chain", "nf_hook_slow", "ip_forward"), "FORWARD"),
        (("nf_hook_slow", "ip_output"), "POSTROUTING"),
        (("nf_hook_slow", "__ip_local_out"), "OUTPUT"),
        (("nf_hook_slow", "br_nf_forward_ip.part.0", "nf_hook_slow", "__br_forward"), "FORWARD"),
        (("nft_do_chain", "nf_hook_slow", "br_nf_forward", "__netif_receive_skb_core"), "FORWARD"),
        (("nf_hook_slow", "__br_forward", "__netif_receive_skb_core"), "bridge FORWARD"),
        (("ip_forward",), None),
        ((), None),
    ],
)
def test_the_hook_is_read_off_the_stack(world, stack, hook):
    assert lost_query(world, 2, stack=stack).query_drop.why.hook == hook


def test_a_kernel_that_names_nothing_is_quoted_as_saying_nothing(world):
    cause = explain(lost_query(world, 2, "", "")).cause
    assert (cause.code, cause.confidence) == ("KernelDrop", "medium")
    assert "no reason given" in cause.text


def test_a_lost_attempt_of_a_success_has_its_cause(world):
    lookup = world.Lookup()
    again = world.START + 5 * world.SECOND
    dropped = world.dropped(lookup.query(), 2, "TC_EGRESS", "")
    verdict = explain(world.outcome(dropped, lookup.query(again), lookup.reply(again + world.MS)))
    assert verdict.cause.code == "PolicyDrop"
    assert "Retransmitted" in verdict.findings


def test_a_silent_server_is_not_blamed_of_what_was_dropped_before_it(world):
    assert explain(lost_query(world, 3)).cause.code == "PolicyDrop"


def test_the_server_is_blamed_where_it_is(world):
    cause = explain(world.outcome(world.Lookup().query())).cause
    assert "10.244.1.53:53" in cause.text
    assert str(world.SERVER) in cause.evidence[0]


def test_the_way_out_of_the_node_is_named(world):
    assert "eth0" in explain(world.outcome(world.Lookup(shape="client").query())).cause.text


@pytest.mark.parametrize(
    "flags", [{"aa": True}, {"aa": True, "ra": True}, {"aa": False, "ra": True}, {"aa": False, "an": 1}]
)
@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (5, "REFUSED")])
def test_a_delivered_error_is_named_and_never_called_a_vanished_reply(world, flags, rcode, name):
    cause = explain(world.outcome(world.Lookup().both(rcode=rcode, **flags))).cause
    assert name in cause.text
    assert "no more" not in cause.text


def test_a_truncated_answer_is_remarked(world):
    verdict = explain(world.outcome(world.Lookup().both(tc=True)))
    assert (verdict.cause, verdict.findings) == (None, ["Truncated"])


@pytest.mark.parametrize(("known", "confidence"), [(False, "high"), (True, "medium")])
def test_a_drop_in_prerouting_is_less_certain_where_a_transparent_proxy_is_known(world, known, confidence):
    if known:
        world.table.node_state.takers._programs.add((world.NODE, b"cilium-agent"))
    dropped = world.dropped(world.Lookup().query(), 2, "NETFILTER_DROP", "nft_do_chain", ("nft_do_chain", "ip_rcv"))
    cause = explain(world.outcome(dropped)).cause
    assert (cause.code, cause.confidence) == ("PolicyDrop", confidence)
    assert any("TPROXY" in one for one in cause.evidence)
