"""agent.explain: every rule speaks where its evidence is, and keeps silent elsewhere."""

import inspect
import re

import pytest

from agent.explain import rules
from agent.explain.causes import CAUSES
from agent.explain.rules import explain

STACK = ("nf_hook_slow", "ip_forward")


def lost_query(world, after=2, reason="NETFILTER_DROP", location="nf_hook_slow", stack=()):
    return world.outcome(world.dropped(world.Lookup().query(), after, reason, location, stack))


def lost_reply(world, after=2, reason="NETFILTER_DROP", location="nf_hook_slow", stack=()):
    lookup = world.Lookup()
    return world.outcome(lookup.query(), world.dropped(lookup.reply(), after, reason, location, stack))


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


def upstream_without_tcp(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    refused = world.Tcp(lookup.onward(port=33001)).refuse(start + world.MS)
    return world.outcome(lookup.query(start), refused, lookup.reply(start + 3 * world.MS, rcode=2, aa=False))


def late_reply(world):
    lookup = world.Lookup()
    reply = lookup.reply(world.START + 6 * world.SECOND)
    return world.outcome(lookup.query(), world.dropped(reply, 4, "NO_SOCKET", "__udp4_lib_rcv"))


CASES = {
    "LateReply": (late_reply, "high"),
    "FragmentLost": (lambda world: lost_query(world, 2, "FRAG_REASM_TIMEOUT", "ip_expire"), "high"),
    "UpstreamTCPUnavailable": (upstream_without_tcp, "high"),
    "UpstreamTimeout": (silent_upstream, "high"),
    "CaptureLoss": (sample_loss, "high"),
    "NoListener": (lambda world: lost_query(world, 4, "NO_SOCKET", "__udp4_lib_rcv"), "high"),
    "PolicyDrop": (lambda world: lost_query(world, 2, "NETFILTER_DROP", "nft_do_chain"), "high"),
    "KernelDrop": (lambda world: lost_query(world, 2, "UDP_CSUM", "__udp4_lib_rcv"), "medium"),
    "ServerNoReply": (lambda world: world.outcome(world.Lookup().query()), "high"),
    "LeftNode": (lambda world: world.outcome(world.Lookup(shape="client").query()), "medium"),
    "ServerError": (lambda world: world.outcome(world.Lookup().both(rcode=2, aa=False)), "medium"),
    "UpstreamError": (lambda world: world.outcome(world.Lookup().both(rcode=2, aa=False, ra=True)), "low"),
    "Unknown": (vanished_reply, "low"),
}


@pytest.mark.parametrize("code", CASES)
def test_each_cause_is_told_with_evidence_a_remedy_and_all_its_words(world, code):
    make, confidence = CASES[code]
    cause = explain(make(world)).cause
    assert (cause.code, cause.confidence) == (code, confidence)
    assert cause.evidence
    assert all(cause.evidence)
    assert cause.remedy == CAUSES[code].remedy
    assert cause.doc == f"docs/causes.md#{code.lower()}"
    for text in (cause.message, cause.remedy, *cause.evidence):
        assert not re.search(r"[{}]|None|\n", text)


def test_the_codes_that_rules_can_say_are_the_codes_that_have_words():
    said = set(re.findall(r'_say\(\s*"(\w+)"', inspect.getsource(rules)))
    assert said == set(CAUSES) == set(CASES)


def test_words_are_whole_sentences():
    for text in CAUSES.values():
        assert re.fullmatch(r"[A-Z].*\.", text.sentence)
        assert re.fullmatch(r"[A-Z].*\.", text.remedy)


def test_a_success_has_no_cause_and_no_remarks(world):
    assert explain(world.outcome(world.Lookup().both())) == (None, [])


def test_a_name_that_does_not_exist_has_no_cause(world):
    assert explain(world.outcome(world.Lookup().both(rcode=3))).cause is None


def test_the_listener_is_missed_where_the_query_arrived(world):
    cause = explain(lost_query(world, 4, "NO_SOCKET", "__udp4_lib_rcv")).cause
    assert "10.244.1.53" in cause.message
    assert "port 53" in cause.message


def test_a_client_that_closed_its_socket_is_no_missing_listener(world):
    assert explain(lost_reply(world, 4, "NO_SOCKET", "__udp4_lib_rcv")).cause.code != "NoListener"


@pytest.mark.parametrize(
    ("reason", "location", "words"),
    [
        ("TC_INGRESS", "", "tc program (ingress)"),
        ("TC_EGRESS", "", "tc program (egress)"),
        ("NETFILTER_DROP", "nft_do_chain", "nftables"),
    ],
)
@pytest.mark.parametrize("lose", [lost_query, lost_reply])
def test_a_policy_is_named_where_the_kernel_shows_it(world, lose, reason, location, words):
    cause = explain(lose(world, 2, reason, location)).cause
    assert cause.code == "PolicyDrop"
    assert words in cause.message
    assert str(world.NODE) in cause.message
    assert ("query" if lose is lost_query else "reply") in cause.message


def test_netfilter_alone_accuses_no_policy(world):
    # The same place drops for a full connection table.
    cause = explain(lost_query(world, 2, stack=STACK)).cause
    assert cause.code == "KernelDrop"
    assert "FORWARD" in cause.message
    assert "NETFILTER_DROP" in cause.message


@pytest.mark.parametrize(
    ("stack", "hook"),
    [
        (("nf_hook_slow", "ip_rcv"), "PREROUTING"),
        (("nf_hook_slow", "ip_local_deliver"), "INPUT"),
        (("nft_do_chain", "nf_hook_slow", "ip_forward"), "FORWARD"),
        (("nf_hook_slow", "ip_output"), "POSTROUTING"),
        (("nf_hook_slow", "__ip_local_out"), "OUTPUT"),
        (("ip_forward",), None),
        ((), None),
    ],
)
def test_the_hook_is_read_off_the_stack(world, stack, hook):
    _, drop = lost_query(world, 2, stack=stack).query_drop
    assert drop.hook == hook


def test_a_kernel_that_names_nothing_is_quoted_as_saying_nothing(world):
    cause = explain(lost_query(world, 2, "", "")).cause
    assert (cause.code, cause.confidence) == ("KernelDrop", "medium")
    assert "no reason given" in cause.message


def test_a_lost_attempt_of_a_success_has_its_cause(world):
    lookup = world.Lookup()
    again = world.START + 5 * world.SECOND
    dropped = world.dropped(lookup.query(), 2, "TC_EGRESS", "")
    verdict = explain(world.outcome(dropped, lookup.query(again), lookup.reply(again + world.MS)))
    assert verdict.cause.code == "PolicyDrop"
    assert "Retransmitted" in verdict.findings


def test_a_silent_server_is_not_accused_of_what_was_dropped_before_it(world):
    assert explain(lost_query(world, 3)).cause.code == "KernelDrop"


def test_the_server_is_accused_where_it_is(world):
    cause = explain(world.outcome(world.Lookup().query())).cause
    assert "10.244.1.53:53" in cause.message
    assert str(world.SERVER) in cause.evidence[0]


def test_the_way_out_of_the_node_is_named(world):
    assert "eth0" in explain(world.outcome(world.Lookup(shape="client").query())).cause.message


@pytest.mark.parametrize(
    "flags", [{"aa": True}, {"aa": True, "ra": True}, {"aa": False, "ra": True}, {"aa": False, "an": 1}]
)
@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (5, "REFUSED")])
def test_a_delivered_error_is_named_and_never_called_a_vanished_reply(world, flags, rcode, name):
    cause = explain(world.outcome(world.Lookup().both(rcode=rcode, **flags))).cause
    assert name in cause.message
    assert "no more" not in cause.message


def test_a_truncated_answer_is_remarked(world):
    verdict = explain(world.outcome(world.Lookup().both(tc=True)))
    assert (verdict.cause, verdict.findings) == (None, ["Truncated"])
