"""agent.explain.replies: a reply under an address that nobody asked is blamed on the delay where it was late."""

from dataclasses import replace

import pytest

from agent.context.cluster import Backends, NullCluster
from agent.context.counters import NullCounters
from agent.explain.rules import explain
from agent.hop.endpoint import Endpoint
from tests.unit.conftest import BACKEND, BACKEND6, NODE, POD, POD6, SECOND, START, VIP, VIP6, packed

FORWARD = ("nf_hook_slow", "ip_forward")
NEW = 2
"""enum ip_conntrack_info, IP_CT_NEW."""


class Listed(NullCluster):
    """A cluster in which the server is not ready."""

    def backends(self, virtual, _protocol):
        known = virtual.address in {packed(VIP[0]), packed(VIP6[0])}
        return Backends(frozenset(), frozenset({Endpoint(packed(BACKEND[0]), 53)})) if known else None


def untranslated(reply, *, forgotten=True, v6=False):
    """The reply's hops as they are when nobody translates it back."""
    server, client = (BACKEND6, POD6) if v6 else (BACKEND, POD)
    own = (server, client, client, server, NEW) if forgotten else None
    return [
        replace(hop, source=server, conntrack=own if hop.netns == NODE and hop.conntrack else None) for hop in reply
    ]


def lost(world, seconds, *, again=0.0, forgotten=True, v6=False, shape="pod"):
    """A lookup whose reply comes so late, untranslated, when no socket takes it."""
    lookup = world.Lookup(v6=v6, shape=shape)
    asked = [lookup.query()] + ([lookup.query(START + int(again * SECOND))] if again else [])
    reply = untranslated(lookup.reply(START + int(seconds * SECOND)), forgotten=forgotten, v6=v6)
    died = world.dropped(reply, len(reply), "NO_SOCKET", "__udp4_lib_rcv")
    return world.outcome(*asked, died)


def cause_of(outcome, cluster=None):
    return explain(outcome, NullCounters(), cluster or NullCluster()).cause


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("shape", ["pod", "host"])
def test_late_is_late_whatever_became_of_the_translation(world, v6, shape):
    cause = cause_of(lost(world, 6, v6=v6, shape=shape))
    assert (cause.code, cause.confidence) == ("LateReply", "high")
    assert any("no entry for it any more" in line for line in cause.evidence)


def test_a_client_that_asked_again_had_probably_given_up(world):
    cause = cause_of(lost(world, 3, again=2))
    assert (cause.code, cause.confidence) == ("LateReply", "medium")
    assert any("asked 2 times" in line for line in cause.evidence)


@pytest.mark.parametrize("shape", ["pod", "host"])
def test_in_time_the_forgotten_translation_is_likely(world, shape):
    cause = cause_of(lost(world, 0.5, shape=shape))
    assert (cause.code, cause.confidence) == ("KernelDrop", "medium")
    assert "forgotten the translation" in cause.text
    assert "bridge" not in cause.text


def test_no_setting_is_asserted_that_nobody_read(world):
    cause = cause_of(lost(world, 0.5, forgotten=False))
    assert (cause.code, cause.confidence) == ("KernelDrop", "high")
    assert "bypassed" in cause.text
    assert "would do that" in cause.text


def test_late_past_the_table_is_late_with_reserve(world):
    cause = cause_of(lost(world, 6, forgotten=False))
    assert (cause.code, cause.confidence) == ("LateReply", "medium")


def test_the_cluster_tells_why_the_translation_is_gone(world):
    cause = cause_of(lost(world, 6), Listed())
    assert any("10.244.1.53:53 is not ready now" in line for line in cause.evidence)


@pytest.mark.parametrize(("seconds", "code", "confidence"), [(6, "LateReply", "high"), (0.5, "KernelDrop", "medium")])
def test_a_rule_that_refuses_what_is_no_reply_any_more_is_not_to_blame(world, seconds, code, confidence):
    lookup = world.Lookup()
    reply = untranslated(lookup.reply(START + int(seconds * SECOND)))
    own = (BACKEND, POD, POD, BACKEND, NEW)
    cause = cause_of(world.outcome(lookup.query(), world.dropped(reply, 2, stack=FORWARD, conntrack=own)))
    assert (cause.code, cause.confidence) == (code, confidence)


def test_a_rule_that_refuses_a_reply_is(world):
    # Its source is translated back at POSTROUTING, behind the rule.
    lookup = world.Lookup()
    reply = world.dropped(lookup.reply(START + 6 * SECOND), 2, stack=FORWARD, conntrack=lookup.tracked(response=True))
    assert cause_of(world.outcome(lookup.query(), reply)).code == "PolicyDrop"


def test_what_the_client_says_of_it_by_icmp_is_no_missing_listener(world):
    lookup = world.Lookup()
    reply = untranslated(lookup.reply(START + 6 * SECOND))
    died = world.dropped(reply, 4, "NO_SOCKET", "__udp4_lib_rcv")
    cause = cause_of(world.outcome(lookup.query(), died, [world.icmp(died[-1], 3, 3, POD[0])]))
    assert cause.code == "LateReply"
    assert any("port unreachable" in line for line in cause.evidence)


@pytest.mark.parametrize("reason", ["TCP_ABORT_ON_DATA", "TCP_CLOSE"])
def test_a_reply_for_a_connection_that_its_client_has_closed_is_late(world, reason):
    lookup = world.Lookup()
    reply = world.dropped(lookup.reply(START + 2 * SECOND), 4, reason, "tcp_rcv_state_process")
    cause = explain(world.outcome(lookup.query(), reply)).cause
    assert (cause.code, cause.confidence) == ("LateReply", "high")


def test_a_reply_that_was_refused_counts_and_not_its_repetition_that_came_too_late(world):
    lookup = world.Lookup()
    refused = world.dropped(lookup.reply(START + SECOND), 2)
    late = world.dropped(lookup.reply(START + 7 * SECOND), 4, "NO_SOCKET", "__udp4_lib_rcv")
    cause = explain(world.outcome(lookup.query(), refused, lookup.query(START + 5 * SECOND), late)).cause
    assert cause.code == "PolicyDrop"
