"""Which reply counts, which server it names, and what is said of replies that no client can use."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cli import main
from agent.explain.rules import explain
from agent.export import line
from agent.export.metrics.losses import lost_messages
from agent.export.redaction import Redaction
from agent.export.table import fit, row
from agent.hop.endpoint import address_to_text
from agent.hop.record import DETAIL
from agent.session.addressed import addressed, server_of
from agent.wire.stream import SYN
from tests.unit.conftest import BACKEND, POD, VIP, packed

CASES = Path(__file__).parents[2] / "fixtures/cases"
SECOND, SECOND6 = ("10.96.0.11", 53), ("fd00:96::b", 53)
SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, NOTAUTH = 2, 3, 4, 5, 6, 9


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("DNSTRAIL_PORTS", raising=False)
    # The command freezes and disables the collector of its process, which here is the tests'.
    monkeypatch.setattr("agent.replay.freeze_gc", lambda: None)


@pytest.fixture
def replayed(capsys):
    """The lines of one of the small captures."""

    def run(name: str) -> list[dict[str, Any]]:
        (path,) = CASES.glob(f"{name}*.pcap")
        assert main(["replay", str(path)]) == 0
        return [json.loads(text) for text in capsys.readouterr().out.splitlines()]

    return run


def lines_of(outcomes):
    context = line.Context("node-a", 0)
    return [line.build(one, explain(one), context) for one in outcomes]


def asked(outcome):
    return address_to_text(outcome.server.address), outcome.server.port


def elsewhere(world, lookup, server=SECOND):
    """The same query, to another server on another node."""
    return world.Lookup(
        identifier=lookup.identifier, shape="client", vip=server, dnat=False, client=lookup.client, v6=lookup.v6
    )


def upstreams(one):
    return [(found["Address"], found["Rcode"]) for found in one["Upstream"]]


# Which reply the client takes


def test_a_capture_in_which_servfail_is_followed_by_an_answer_is_a_success_with_a_lost_attempt(replayed):
    (one,) = replayed("09")
    assert (one["Status"], one["Rcode"], one["Attempts"]) == ("Succeeded", "NOERROR", 2)
    assert one["Cause"]["Code"] in {"ServerError", "UpstreamError"}
    assert "SERVFAIL" in one["Cause"]["Message"]
    assert one["Findings"] == ["Retransmitted"]


@pytest.mark.parametrize("rcode", [SERVFAIL, REFUSED, NOTIMP, 1, YXDOMAIN, NOTAUTH])
@pytest.mark.parametrize("v6", [False, True])
def test_a_good_reply_to_a_repeated_query_wins_over_an_earlier_error(world, rcode, v6):
    lookup = world.Lookup(v6=v6)
    repeated = world.START + 2 * world.MS
    outcome = world.outcome(
        lookup.both(rcode=rcode, aa=False),
        lookup.query(repeated),
        lookup.reply(repeated + 3 * world.SECOND, rcode=NXDOMAIN),
    )
    assert (outcome.status, outcome.rcode, outcome.attempts) == ("Succeeded", NXDOMAIN, 2)
    cause = explain(outcome).cause
    assert (cause.code, cause.confidence) == ("ServerError", "medium")


def test_a_client_that_asked_once_took_the_first_reply_whatever_came_then(world):
    lookup = world.Lookup()
    outcome = world.outcome(lookup.both(rcode=SERVFAIL, aa=False), lookup.reply(world.START + 2 * world.MS, rcode=0))
    assert (outcome.status, outcome.rcode) == ("Failed", SERVFAIL)


def test_an_error_after_a_good_reply_changes_nothing(world):
    lookup = world.Lookup()
    again = world.START + world.MS // 10
    outcome = world.outcome(
        lookup.both(), lookup.query(again), lookup.reply(again + world.MS, rcode=SERVFAIL, aa=False)
    )
    assert (outcome.status, outcome.rcode) == ("Succeeded", 0)
    assert explain(outcome).cause is None


def test_errors_alone_are_a_failure_by_the_last_of_them(world):
    lookup = world.Lookup()
    repeated = world.START + 2 * world.MS
    outcome = world.outcome(
        lookup.both(rcode=SERVFAIL, aa=False), lookup.query(repeated), lookup.reply(repeated + world.MS, rcode=REFUSED)
    )
    assert (outcome.status, outcome.rcode) == ("Failed", REFUSED)


# Which server the line names


def test_a_capture_in_which_the_second_server_was_faster_names_that_server(replayed):
    (one,) = replayed("10")
    assert (one["Status"], one["Rcode"], one["Attempts"]) == ("Succeeded", "NXDOMAIN", 2)
    assert one["Server"]["Address"] == "192.0.2.54"
    assert "ServersDisagree" in one["Findings"]
    assert any("192.0.2.53:53 answered NOERROR" in remark for remark in one["Remarks"])
    assert one["Cause"] is None


@pytest.mark.parametrize(("v6", "second"), [(False, SECOND), (True, SECOND6)])
@pytest.mark.parametrize("delay_ms", [1, 900])
def test_of_servers_asked_at_once_the_one_with_a_good_reply_counts(world, v6, second, delay_ms):
    lookup = world.Lookup(v6=v6)
    other = elsewhere(world, lookup, second)
    outcome = world.outcome(
        lookup.query(),
        other.query(world.START + world.MS // 100),
        lookup.reply(rcode=SERVFAIL, aa=False),
        other.reply(world.START + delay_ms * world.MS),
    )
    assert (outcome.status, outcome.rcode) == ("Succeeded", 0)
    assert asked(outcome) == second
    assert outcome.server_netns is None
    assert lines_of([outcome])[0].server.address == second[0]
    assert explain(outcome).cause is None
    assert "ServersDisagree" in explain(outcome).findings


def test_the_server_is_the_one_that_was_asked_first_while_none_replies(world):
    lookup = world.Lookup()
    outcome = world.outcome(lookup.query(), elsewhere(world, lookup).query(world.START + world.MS // 100))
    assert asked(outcome) == VIP


def test_a_reply_tells_the_server_by_its_conntrack_entry_before_it_is_translated_back(world):
    lookup = world.Lookup()
    before = replace(lookup.reply()[1], conntrack=lookup.tracked(response=True))
    record = world.recorder.pack(before)
    assert address_to_text(addressed(record, response=True).address) == VIP[0]


def test_an_entry_that_the_servers_packet_opened_does_not_make_the_client_its_own_server(world):
    """In the reply direction of an entry the original destination is the client."""
    lookup = world.Lookup(dnat=False, vip=BACKEND)
    entry = (BACKEND, POD, POD, BACKEND, 3)
    hops = [replace(hop, conntrack=entry) for hop in lookup.query()]
    outcome = world.outcome(hops, lookup.reply())
    assert asked(outcome) == BACKEND
    assert lines_of([outcome])[0].server.address == BACKEND[0]


def test_a_reply_without_its_query_names_the_server_as_the_client_knows_it(world):
    world.table.record_loss(world.START - world.SECOND, world.START + world.SECOND)
    outcome = world.outcome(world.Lookup().reply()[:3])
    assert server_of(outcome.session, outcome.reply).address == packed(VIP[0])


# One id, one port, several upstreams


def test_a_capture_with_two_upstreams_under_one_id_shows_both(replayed):
    own, exchange = replayed("11")
    assert (own["Status"], own["BitMap"], own["Cause"]) == ("Succeeded", 15, None)
    assert upstreams(own) == [("198.51.100.53", "REFUSED"), ("198.51.100.54", "NOERROR")]
    assert [round(found["DurationSeconds"], 4) for found in own["Upstream"]] == [0.009, 0.01]
    assert own["Findings"] == []
    assert (exchange["Status"], exchange["Rcode"], exchange["Server"]["Address"]) == (
        "Succeeded",
        "NOERROR",
        "198.51.100.54",
    )
    assert exchange["Cause"] is None


# Whose error it is


def test_a_capture_in_which_the_upstream_said_otherwise_has_the_servers_own_error_with_its_extended_error(replayed):
    own, _ = replayed("06")
    cause = own["Cause"]
    assert (cause["Code"], cause["Confidence"]) == ("ServerError", "high")
    assert "SERVFAIL (DNSSEC Bogus)" in cause["Message"]
    assert "198.51.100.53:53 answered NOERROR" in cause["Message"]
    assert 'extended error 6 DNSSEC Bogus: "signature expired"' in cause["Evidence"]
    assert "DNSSEC of the zone" in cause["Remedy"]


def test_a_capture_whose_last_upstream_was_silent_names_that_one(replayed):
    own = next(one for one in replayed("07") if one["TransactionId"] == 13)
    assert (own["Status"], own["Rcode"]) == ("Failed", "SERVFAIL")
    cause = own["Cause"]
    assert (cause["Code"], cause["Confidence"]) == ("UpstreamTimeout", "high")
    assert cause["Message"] == "The DNS server asked its upstream 198.51.100.3:53 and got no answer."
    assert cause["Evidence"][0] == "3 queries to 198.51.100.3:53, no reply"


def test_a_capture_with_an_error_after_a_repeated_attempt_is_told_by_the_error(replayed):
    (one,) = replayed("08")
    assert (one["Status"], one["Rcode"], one["Attempts"]) == ("Failed", "SERVFAIL", 2)
    cause = one["Cause"]
    assert (cause["Code"], cause["Confidence"]) == ("UpstreamError", "low")
    assert cause["Evidence"] == [
        "SERVFAIL 6.000 s after the query, with AA=0, RA=1",
        "the server is beyond this node: what it asks cannot be seen here",
    ]
    assert "cannot be seen from here" in cause["Message"]


def test_a_capture_with_badcookie_is_the_servers_own_word(replayed):
    (one,) = replayed("23")
    assert (one["Cause"]["Code"], one["Cause"]["Confidence"]) == ("ServerError", "high")
    assert "itself answered BADCOOKIE" in one["Cause"]["Message"]
    assert "ask again with the cookie" in one["Cause"]["Remedy"]


def test_a_capture_with_dnsmasqs_own_refusal_says_how_fast_it_came_and_that_nobody_was_asked(replayed):
    (one,) = replayed("28")
    assert (one["Cause"]["Code"], one["Cause"]["Confidence"]) == ("ServerError", "medium")
    assert "REFUSED after 0.1 ms" in one["Cause"]["Message"]
    assert "the server was not seen to ask another server on a DNS port" in one["Cause"]["Evidence"]
    assert "concurrency limit" in one["Cause"]["Remedy"]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(("rcode", "name"), [(1, "FORMERR"), (2, "SERVFAIL"), (4, "NOTIMP"), (5, "REFUSED")])
def test_an_error_of_a_server_here_that_asked_nobody_is_its_own_although_it_offers_recursion(world, rcode, name, v6):
    cause = explain(world.outcome(world.Lookup(v6=v6).both(rcode=rcode, aa=False, ra=True))).cause
    assert (cause.code, cause.confidence) == ("ServerError", "medium")
    assert name in cause.text


@pytest.mark.parametrize("v6", [False, True])
def test_a_slow_error_of_a_server_that_was_not_seen_to_ask_is_told_with_doubt(world, v6):
    lookup = world.Lookup(v6=v6)
    outcome = world.outcome(
        lookup.query(), lookup.reply(world.START + 6 * world.SECOND, rcode=SERVFAIL, aa=False, ra=True)
    )
    cause = explain(outcome).cause
    assert (cause.code, cause.confidence) == ("ServerError", "low")
    assert "itself" not in cause.text


@pytest.mark.parametrize("shape", ["client", "pod"])
@pytest.mark.parametrize("attempts", [2, 3])
def test_a_delivered_error_is_never_told_as_nothing_came_back(world, shape, attempts):
    lookup = world.Lookup(shape=shape)
    asked_again = [lookup.query(world.START + count * 2 * world.SECOND) for count in range(attempts)]
    outcome = world.outcome(
        *asked_again, lookup.reply(world.START + 6 * world.SECOND, rcode=SERVFAIL, aa=False, ra=True)
    )
    assert (outcome.status, outcome.attempts) == ("Failed", attempts)
    assert explain(outcome).cause.code in {"ServerError", "UpstreamError"}
    assert "no reply came back" not in explain(outcome).cause.text


def exchange(ask, start, took=None, **reply):
    asked_, said = ask.query(start), [] if took is None else ask.reply(start + took, **reply)
    return [*asked_, *said]


def warm(world):
    """A server that is known to be one."""
    world.feed(world.Lookup(port=2000, identifier=1).both()).later(world.SECOND)
    return world.now + world.SECOND


def test_an_error_after_another_error_of_the_upstream_is_the_upstreams_with_both_named(world):
    start = warm(world)
    lookup = world.Lookup()
    ask = lookup.onward(port=33001)
    outcomes = world.outcomes(
        lookup.query(start),
        exchange(ask, start + world.MS, 2 * world.MS, rcode=REFUSED, aa=False),
        lookup.reply(start + 5 * world.MS, rcode=SERVFAIL, aa=False, ra=True),
    )
    cause = explain(outcomes[0]).cause
    assert (cause.code, cause.confidence) == ("UpstreamError", "medium")
    assert "answered SERVFAIL after its upstream 100.100.2.136:53 had answered REFUSED" in cause.text


def test_of_upstreams_the_one_that_was_waited_for_last_decides(world):
    start = warm(world)
    lookup = world.Lookup()
    first = lookup.onward(port=33001)
    second = lookup.onward(port=33002, identifier=7, vip=("100.100.2.138", 53))
    outcomes = world.outcomes(
        lookup.query(start),
        exchange(first, start + world.MS, 2 * world.MS, rcode=SERVFAIL, aa=False),
        exchange(second, start + 5 * world.MS),
        lookup.reply(start + 2 * world.SECOND, rcode=SERVFAIL, aa=False, ra=True),
    )
    cause = explain(outcomes[0]).cause
    assert (cause.code, cause.confidence) == ("UpstreamTimeout", "high")
    assert "100.100.2.138:53 and got no answer" in cause.text
    assert "100.100.2.136:53 answered SERVFAIL" in cause.evidence


@pytest.mark.parametrize("over_tcp", [False, True])
@pytest.mark.parametrize(("lossy", "confidence"), [(False, "high"), (True, "low")])
def test_an_upstream_is_not_called_silent_for_sure_while_records_were_lost(world, lossy, confidence, over_tcp):
    start = warm(world)
    lookup = world.Lookup()
    ask = lookup.onward(port=33001)
    asked_ = world.Tcp(ask).segment(start + world.MS, flags=SYN) if over_tcp else ask.query(start + world.MS)
    world.feed(lookup.query(start), asked_)
    if lossy:
        world.table.record_loss(start + 2 * world.MS, start + 3 * world.MS)
    outcome = world.outcomes(lookup.reply(start + 2 * world.SECOND, rcode=SERVFAIL, aa=False, ra=True))[0]
    cause = explain(outcome).cause
    assert (cause.code, cause.confidence) == ("UpstreamTCPUnavailable" if over_tcp else "UpstreamTimeout", confidence)
    assert any("records were lost meanwhile" in line for line in cause.evidence) is lossy


def test_an_upstream_that_was_not_waited_for_is_not_blamed(world):
    start = warm(world)
    lookup = world.Lookup()
    first = lookup.onward(port=33001)
    second = lookup.onward(port=33002, identifier=7, vip=("100.100.2.138", 53))
    outcomes = world.outcomes(
        lookup.query(start),
        exchange(first, start + world.MS, 2 * world.MS, rcode=REFUSED, aa=False),
        exchange(second, start + 2 * world.MS),
        lookup.reply(start + 4 * world.MS, rcode=REFUSED, aa=False, ra=True),
    )
    cause = explain(outcomes[0]).cause
    assert (cause.code, cause.confidence) == ("UpstreamError", "high")
    assert "relayed REFUSED from its upstream 100.100.2.136:53" in cause.text


def test_an_upstream_that_answers_too_much_for_udp_and_refuses_tcp_is_told_so(world):
    start = warm(world)
    lookup = world.Lookup()
    outcomes = world.outcomes(
        lookup.query(start),
        exchange(lookup.onward(port=33001), start + world.MS, 2 * world.MS, tc=True, aa=False),
        world.Tcp(lookup.onward(port=33003)).refuse(start + 4 * world.MS),
        lookup.reply(start + 6 * world.MS, rcode=SERVFAIL, aa=False, ra=True),
    )
    cause = explain(outcomes[0]).cause
    assert cause.code == "UpstreamTCPUnavailable"
    assert "100.100.2.136:53 answered NOERROR, truncated" in cause.evidence


def with_options(raw, *options, rcode=0):
    """The message with an OPT record (RFC 6891 6.1.2) of these (code, data); `rcode` is the upper bits."""
    data = b"".join(struct.pack("!HH", code, len(value)) + value for code, value in options)
    counts = raw[:10] + struct.pack("!H", 1)
    return counts + raw[12:] + b"\0" + struct.pack("!HHIH", 41, 1232, rcode << 24, len(data)) + data


def explained(world, lookup, code, text=b"", *, rcode=SERVFAIL):
    error = with_options(lookup.answer(rcode=rcode, aa=False, ra=True), (15, struct.pack("!H", code) + text))
    return explain(world.outcome(lookup.query(), lookup.reply(content=error))).cause


@pytest.mark.parametrize("shape", ["pod", "client"])
@pytest.mark.parametrize(
    ("code", "name", "remedy"),
    [
        (6, "DNSSEC Bogus", "DNSSEC of the zone"),
        (7, "Signature Expired", "sign it again"),
        (8, "Signature Not Yet Valid", "clock"),
        (9, "DNSKEY Missing", "DNSSEC of the zone"),
        (13, "Cached Error", "cache"),
        (14, "Not Ready", "not loaded its data"),
        (15, "Blocked", "list or rule"),
        (16, "Censored", "list or rule"),
        (17, "Filtered", "list or rule"),
        (18, "Prohibited", "list or rule"),
        (20, "Not Authoritative", "does not serve this zone"),
        (21, "Not Supported", "opcode"),
        (22, "No Reachable Authority", "network from the DNS server"),
        (23, "Network Error", "network from the DNS server"),
    ],
)
def test_an_extended_error_is_quoted_and_chooses_the_remedy(world, shape, code, name, remedy):
    cause = explained(world, world.Lookup(shape=shape), code, b"said so")
    assert f"({name})" in cause.text
    assert f'extended error {code} {name}: "said so"' in cause.evidence
    assert remedy in cause.remedy


def test_an_extended_error_that_nobody_knows_is_quoted_by_its_number(world):
    cause = explained(world, world.Lookup(), 4242, b"")
    assert "extended error 4242" in cause.evidence
    assert cause.remedy.startswith("Look at the server's configuration")


@pytest.mark.parametrize("text", [b"\x1b[2Jgone\n", b"\xff\xfe", b'say "this"', "\u202eback".encode(), b"x" * 4000])
def test_what_a_server_writes_into_an_extended_error_cannot_disturb_a_terminal(world, text):
    cause = explained(world, world.Lookup(), 6, text)
    (quoted,) = (one for one in cause.evidence if one.startswith("extended error"))
    assert quoted.isprintable()
    assert quoted.count('"') == 2
    assert len(quoted) < 200


@pytest.mark.parametrize(("upper", "header", "name"), [(1, 0, "BADVERS"), (1, 7, "BADCOOKIE")])
@pytest.mark.parametrize("shape", ["pod", "client"])
def test_codes_between_neighbours_are_never_told_as_relayed(world, upper, header, name, shape):
    lookup = world.Lookup(shape=shape)
    error = with_options(lookup.answer(rcode=header, aa=False, ra=True), rcode=upper)
    outcome = world.outcome(lookup.query(), lookup.reply(content=error))
    assert outcome.status == "Failed"
    cause = explain(outcome).cause
    assert (cause.code, cause.confidence) == ("ServerError", "high")
    assert f"itself answered {name}" in cause.text


def test_an_error_before_a_success_counts_as_a_lost_query(world):
    lookup = world.Lookup()
    repeated = world.START + 2 * world.MS
    outcome = world.outcome(
        lookup.both(rcode=SERVFAIL, aa=False), lookup.query(repeated), lookup.reply(repeated + world.MS)
    )
    assert lost_messages(outcome, explain(outcome).cause) == ("query", 1)


def test_an_error_that_ended_the_lookup_lost_no_message(world):
    outcome = world.outcome(world.Lookup().both(rcode=SERVFAIL, aa=False))
    assert lost_messages(outcome, explain(outcome).cause) is None


# Replies that no client can use


def test_a_capture_with_a_reply_that_cannot_be_read_says_that_one_came(replayed):
    (one,) = replayed("12")
    assert (one["Status"], one["Rcode"]) == ("Failed", None)
    cause = one["Cause"]
    assert (cause["Code"], cause["Confidence"]) == ("MalformedReply", "medium")
    assert "192.0.2.53:53 1.0 ms after the query" in cause["Message"]
    flagged = [
        (said["type"], "malformed" in said["response_message"]) for said in one["Messages"] if "response_time" in said
    ]
    assert flagged == [("CLIENT_RESPONSE", True), ("STUB_RESPONSE", True)]


def test_a_capture_with_replies_of_another_id_and_question_lays_each_to_its_lookup(replayed):
    lines = replayed("13")
    assert {one["TransactionId"]: (one["Status"], one["Cause"]["Code"], one["Attempts"]) for one in lines} == {
        2: ("Failed", "MismatchedReply", 1),
        3: ("Failed", "MismatchedReply", 1),
    }
    words = {one["TransactionId"]: one["Cause"]["Message"] for one in lines}
    assert "transaction id 99 instead of 2" in words[2]
    assert "another question" in words[3]
    assert all(any("unusable" in said.get("response_message", ()) for said in one["Messages"]) for one in lines)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("raw", [2, 11, 12, 15])
def test_a_reply_cut_short_by_its_server_is_laid_to_the_lookup_with_its_id(world, v6, raw):
    lookup, other = world.Lookup(v6=v6), world.Lookup(v6=v6, rdtype=28, identifier=8)
    outcomes = world.outcomes(lookup.query(), other.query(world.START + 1), lookup.reply(content=lookup.answer()[:raw]))
    codes = {one.session.key.id: explain(one).cause.code for one in outcomes}
    assert codes == {36259: "MalformedReply", 8: "ServerNoReply"}
    assert world.table.counts.malformed == 0


def test_a_reply_over_tcp_to_another_question_is_laid_to_the_lookup_of_that_connection(world):
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    wrong = world.Lookup(name="other.example.net.").answer()
    outcomes = world.outcomes(tcp.open(), tcp.ask(world.START + world.MS), tcp.say(world.START + 2 * world.MS, wrong))
    assert [explain(one).cause.code for one in outcomes] == ["MismatchedReply"]


def test_a_reply_that_fits_after_one_that_does_not_is_taken(world):
    lookup = world.Lookup()
    wrong = lookup.reply(content=world.Lookup(identifier=99).answer())
    outcome = world.outcome(lookup.query(), wrong, lookup.reply(world.START + world.MS))
    assert outcome.status == "Succeeded"
    assert explain(outcome).cause is None


def test_a_late_reply_to_an_earlier_lookup_of_the_port_is_not_laid_to_the_present_one(world):
    earlier, present = world.Lookup(identifier=1), world.Lookup(identifier=2)
    start = world.START + 11 * world.SECOND
    first = world.feed(earlier.query()).later(11 * world.SECOND)
    late = world.outcomes(present.query(start), earlier.reply(start + world.MS))
    assert [explain(one).cause.code for one in (*first, *late)] == ["ServerNoReply", "ServerNoReply"]
    assert world.table.counts.late == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"identifier": 9, "name": "other.example.net."}, "neither id nor question"),
        ({"identifier": 9, "client": ("172.20.2.25", 5)}, "another socket"),
        ({"identifier": 9, "client": ("172.20.2.99", 44525)}, "another client"),
    ],
)
def test_a_reply_that_cannot_be_meant_for_a_lookup_is_not_laid_to_it(world, change, what):
    lookup = world.Lookup()
    outcomes = world.outcomes(lookup.query(), world.Lookup(**change).reply())
    (own,) = (one for one in outcomes if one.session.key.id == 36259)
    assert own.session.strays is None, what


def test_a_reply_from_a_server_that_was_not_asked_is_not_laid_to_the_lookup(world):
    lookup = world.Lookup(dnat=False, vip=BACKEND)
    wrong = [
        replace(hop, source=("10.244.9.9", 53)) for hop in lookup.reply(content=world.Lookup(identifier=9).answer())
    ]
    outcomes = world.outcomes(lookup.query(), wrong)
    (own,) = (one for one in outcomes if one.session.key.id == 36259)
    assert own.session.strays is None


def test_a_reply_that_the_capture_cut_is_not_called_malformed(world):
    lookup = world.Lookup()
    cut = [world.recorder.pack(hop) for hop in lookup.reply()]
    world.feed(lookup.query())
    for record in cut:
        detail = record.detail
        short = DETAIL.pack(*detail._replace(captured_bytes=14)) + record.payload(detail)[:14]
        world.table.observe(record._replace(rest=short, tail_bytes=14))
    (outcome,) = world.later(60 * world.SECOND)
    assert explain(outcome).cause.code != "MalformedReply"


def test_what_no_client_can_use_is_bounded(world):
    lookup = world.Lookup()
    flood = [
        lookup.reply(world.START + count * world.US, content=world.Lookup(identifier=count).answer())
        for count in range(200)
    ]
    outcome = world.outcome(lookup.query(), *flood)
    assert len(outcome.session.strays.transmissions) == 8
    assert not outcome.session.overflowed
    assert not world.table._strays._by_message


def test_an_upstream_whose_reply_the_server_cannot_use_is_told_with_it(world):
    start = warm(world)
    lookup = world.Lookup()
    ask = lookup.onward(port=33001)
    outcomes = world.outcomes(
        lookup.query(start),
        ask.query(start + world.MS),
        ask.reply(start + 2 * world.MS, content=world.Lookup(identifier=99).answer()),
        lookup.reply(start + 6 * world.SECOND, rcode=SERVFAIL, aa=False),
    )
    cause = explain(outcomes[0]).cause
    assert cause.code == "UpstreamTimeout"
    assert cause.evidence[0] == "1 queries to 100.100.2.136:53, no reply that the server could use (1 came)"


# Replies from where nobody was asked


def test_a_capture_with_a_reply_from_another_address_names_both(replayed):
    (one,) = replayed("14")
    assert (one["Status"], one["BitMap"]) == ("Failed", 3)
    assert (one["Cause"]["Code"], one["Cause"]["Confidence"]) == ("UnexpectedSource", "medium")
    assert "10.244.1.5:53, but the client had asked 10.96.0.10:53" in one["Cause"]["Message"]


OTHER, OTHER6 = ("10.244.1.54", 53), ("fd00:244::54", 53)


def from_other(hops, other=OTHER):
    return [replace(hop, source=other, conntrack=None) for hop in hops]


@pytest.mark.parametrize("other", [OTHER, (VIP[0], 5353)])
@pytest.mark.parametrize("again", [False, True])
def test_a_reply_from_another_address_or_port_is_discarded_and_the_client_that_asks_again_shows_it(world, other, again):
    lookup = world.Lookup()
    repeated = lookup.query(world.START + world.SECOND) if again else []
    outcome = world.outcome(lookup.query(), from_other(lookup.reply(), other), repeated)
    assert outcome.status == "Failed"
    cause = explain(outcome).cause
    assert (cause.code, cause.confidence) == ("UnexpectedSource", "high" if again else "medium")


def test_a_reply_from_another_address_over_ipv6(world):
    lookup = world.Lookup(v6=True)
    outcome = world.outcome(lookup.query(), from_other(lookup.reply(), OTHER6))
    assert explain(outcome).cause.code == "UnexpectedSource"
    assert "[fd00:244::54]:53" in explain(outcome).cause.text


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_replies_the_one_from_the_server_that_was_asked_counts(world, first):
    lookup = world.Lookup()
    strange = from_other(lookup.reply(world.START + 2 * world.MS, rcode=NXDOMAIN))
    right = lookup.reply(world.START + (3 - 2 * first) * world.MS)
    outcome = world.outcome(lookup.query(), *sorted((strange, right), key=lambda hops: hops[0].ts_ns))
    assert (outcome.status, outcome.rcode) == ("Succeeded", 0)


@pytest.mark.parametrize("other", [OTHER, (VIP[0], 5353)])
def test_lookups_like_many_before_are_still_told_from_one_with_a_reply_from_elsewhere(world, other):
    for count in range(3):
        start = world.now + world.SECOND
        lookup = world.Lookup(identifier=count)
        world.feed(lookup.both(start)).later(world.SECOND)
    lookup, start = world.Lookup(identifier=9), world.now + world.SECOND
    outcome = world.outcome(lookup.query(start), from_other(lookup.reply(start + world.MS), other))
    assert outcome.status == "Failed"


@pytest.mark.parametrize("shape", ["pod", "host", "client", "server", "local", "loopback"])
@pytest.mark.parametrize("v6", [False, True])
def test_translation_anywhere_on_the_way_makes_no_unexpected_source(world, shape, v6):
    outcome = world.outcome(world.Lookup(shape=shape, v6=v6 and shape != "local").both())
    assert outcome.status == "Succeeded"
    assert not outcome.unasked


def test_a_reply_that_is_not_yet_in_the_clients_namespace_is_not_judged(world):
    outcome = world.outcome(world.Lookup().query(), world.Lookup().reply()[:2])
    assert not outcome.unasked


def test_a_program_that_redirects_in_the_clients_own_namespace_is_no_unexpected_source(world):
    """OUTPUT NAT to a proxy in the pod: the first hop has the proxy's port already."""
    proxy = ("127.0.0.1", 53)
    lookup = world.Lookup(shape="loopback", client=POD, vip=proxy)
    entry = (POD, VIP, proxy, POD, 2)
    query = [replace(hop, conntrack=entry) for hop in lookup.query()]
    reply = [replace(hop, conntrack=(*entry[:4], 3)) for hop in lookup.reply()]
    outcome = world.outcome(query, reply)
    assert outcome.status == "Succeeded"
    assert asked(outcome) == VIP


# What answers show beside their records


def finding(outcome, name, cluster=None):
    """The sentence of a finding; None where it was not made."""
    verdict = explain(outcome) if cluster is None else explain(outcome, cluster=cluster)
    if name not in verdict.findings:
        return None
    return next(words.partition(": ")[2] for words in verdict.remarks if words.startswith(name))


@pytest.mark.parametrize("port", [44525, 44526])
@pytest.mark.parametrize("exists", [1, 28])
@pytest.mark.parametrize("v6", [False, True])
def test_a_name_that_exists_for_one_type_alone_is_contradictory(world, port, exists, v6):
    first, second = world.Lookup(v6=v6), world.Lookup(v6=v6, rdtype=28, identifier=7, port=port)
    rcodes = {exists: 0, 29 - exists: NXDOMAIN}
    outcomes = world.outcomes(first.both(rcode=rcodes[1]), second.both(world.START + 300 * world.MS, rcode=rcodes[28]))
    words = [finding(one, "ContradictoryAnswers") for one in outcomes]
    assert words[0] is None
    assert "for A" in words[1]
    assert "for AAAA" in words[1]
    assert "NXDOMAIN" in words[1]


@pytest.mark.parametrize(("rcode", "other", "seconds"), [(0, 0, 0), (NXDOMAIN, NXDOMAIN, 0), (0, NXDOMAIN, 6)])
def test_answers_that_agree_or_lie_far_apart_are_not_contradictory(world, rcode, other, seconds):
    start = world.START + world.MS + seconds * world.SECOND
    outcomes = world.outcomes(
        world.Lookup().both(rcode=rcode), world.Lookup(rdtype=28, identifier=7).both(start, rcode=other)
    )
    assert [finding(one, "ContradictoryAnswers") for one in outcomes] == [None, None]


def test_one_type_that_comes_into_being_is_no_contradiction(world):
    again = world.Lookup(identifier=7, port=9).both(world.START + world.SECOND)
    outcomes = world.outcomes(world.Lookup().both(rcode=NXDOMAIN), again)
    assert not {"ContradictoryAnswers", "ServersDisagree"} & {
        name for one in outcomes for name in explain(one).findings
    }


def test_servers_of_two_pods_on_loopback_do_not_contradict_each_other(world):
    """Service meshes and caches listen on 127.0.0.1 in every pod."""
    first, second = (world.Lookup(shape="loopback", client_netns=netns) for netns in (world.CLIENT, world.SERVER))
    second.rdtype, second.identifier = 28, 7
    outcomes = world.outcomes(first.both(rcode=NXDOMAIN), second.both(world.START + world.MS))
    assert [finding(one, "ContradictoryAnswers") for one in outcomes] == [None, None]


def test_the_answers_that_are_forgotten_first_are_the_oldest(world, monkeypatch):
    monkeypatch.setattr("agent.session.last_answers.MAX_ANSWERS", 2)
    said = (("a.", 1, 0), ("b.", 1, 0), ("a.", 1, 0), ("c.", 1, 0), ("a.", 28, NXDOMAIN))
    hops = [
        world.Lookup(name=name, rdtype=rdtype, identifier=count, port=2000 + count).both(
            world.START + count * world.SECOND // 5, rcode=rcode
        )
        for count, (name, rdtype, rcode) in enumerate(said)
    ]
    assert finding(world.outcomes(*hops)[-1], "ContradictoryAnswers") is not None


def test_servers_that_are_asked_one_after_the_other_and_contradict_each_other_are_named(world):
    second = world.Lookup(identifier=7, port=9, vip=SECOND)
    outcomes = world.outcomes(world.Lookup().both(rcode=NXDOMAIN), second.both(world.START + world.SECOND))
    words = finding(outcomes[1], "ServersDisagree")
    assert words == "10.96.0.11 answered NOERROR for A and just before 10.96.0.10 answered NXDOMAIN for A"


@pytest.mark.parametrize(
    ("raw", "offered", "words"),
    [
        (512, None, None),
        (513, None, "513 bytes, and the query allows 512 without EDNS"),
        (1232, 1232, None),
        (1400, 1232, "1400 bytes, and the query allows 1232 by EDNS"),
        (513, 100, "513 bytes"),
        (513, 512, "by EDNS"),
    ],
)
@pytest.mark.parametrize("v6", [False, True])
def test_a_reply_larger_than_offered_is_remarked(world, raw, offered, words, v6):
    lookup = world.Lookup(v6=v6)
    question = lookup.question()
    if offered is not None:
        question = (
            question[:10] + struct.pack("!H", 1) + question[12:] + b"\0" + struct.pack("!HHIH", 41, offered, 0, 0)
        )
    answer = lookup.answer()
    outcome = world.outcome(lookup.query(content=question), lookup.reply(content=answer + bytes(raw - len(answer))))
    found = finding(outcome, "LargerThanOffered")
    assert (words in found) if words else found is None


def test_a_truncated_reply_and_one_over_tcp_are_not_too_large(world):
    lookup = world.Lookup()
    outcome = world.outcome(lookup.query(), lookup.reply(content=lookup.answer(tc=True) + bytes(600)))
    assert finding(outcome, "LargerThanOffered") is None
    tcp = world.Tcp(world.Lookup(port=5))
    long = world.Lookup(port=5).answer() + bytes(600)
    start = world.now + world.SECOND
    (over_tcp,) = world.outcomes(tcp.open(start), tcp.ask(start + world.MS), tcp.say(start + 2 * world.MS, long))
    assert finding(over_tcp, "LargerThanOffered") is None


def test_an_upstream_that_replies_with_more_than_the_server_takes_is_named(world):
    start = warm(world)
    lookup = world.Lookup()
    ask = lookup.onward(port=33001)
    outcomes = world.outcomes(
        lookup.query(start),
        ask.query(start + world.MS),
        ask.reply(start + 2 * world.MS, content=ask.answer() + bytes(600)),
        lookup.reply(start + 3 * world.MS, rcode=SERVFAIL, aa=False, ra=True),
    )
    assert "the upstream 100.100.2.136:53 has" in finding(outcomes[0], "LargerThanOffered")


@pytest.mark.parametrize(
    ("code", "name"), [(6, "DNSSECFailure"), (7, "DNSSECFailure"), (3, "ExtendedError"), (15, "ExtendedError")]
)
@pytest.mark.parametrize("rcode", [0, SERVFAIL, NXDOMAIN])
def test_an_extended_error_is_a_remark_whatever_the_response_code(world, code, name, rcode):
    lookup = world.Lookup()
    reply = with_options(lookup.answer(rcode=rcode, an=0), (15, struct.pack("!H", code) + b"why"))
    assert '"why"' in finding(world.outcome(lookup.query(), lookup.reply(content=reply)), name)


def searching(world, *steps, rdtypes=(1,)):
    """Lookups of a search list one after the other: (name, rcode, answers)."""
    start, hops = world.START, []
    for count, (name, rcode, answers) in enumerate(steps):
        for rdtype in rdtypes:
            lookup = world.Lookup(name=name, identifier=10 * count + rdtype, rdtype=rdtype)
            at = start + count * world.MS + rdtype
            hops += [*lookup.query(at), *lookup.reply(at + world.MS // 2, rcode=rcode, an=answers)]
    hops.sort(key=lambda hop: hop.ts_ns)
    return world.outcomes(hops)


@pytest.mark.parametrize("rdtypes", [(1,), (1, 28)])
def test_no_data_that_ends_a_search_list_is_told(world, rdtypes):
    steps = [("db.shop.svc.cluster.local.", NXDOMAIN, 0), ("db.svc.cluster.local.", 0, 0)]
    outcomes = searching(world, *steps, rdtypes=rdtypes)
    words = [finding(one, "SearchPathNODATA") for one in outcomes[len(rdtypes) :]]
    assert all("db.svc.cluster.local. exists without A" in one for one in words)
    assert not any(finding(one, "SearchPathNODATA") for one in outcomes[: len(rdtypes)])


@pytest.mark.parametrize("last", [("db.cluster.local.", 0, 1), ("db.", 0, 0), ("db.cluster.local.", NXDOMAIN, 0)])
def test_a_search_that_goes_on_after_no_data_is_not_ended_by_it(world, last):
    outcomes = searching(world, ("db.shop.svc.cluster.local.", NXDOMAIN, 0), ("db.svc.cluster.local.", 0, 0), last)
    assert not any(finding(one, "SearchPathNODATA") for one in outcomes)


def test_an_address_of_one_family_is_an_answer_and_ends_no_search(world):
    first = [("db.shop.svc.cluster.local.", NXDOMAIN), ("db.svc.cluster.local.", 0)]
    hops = []
    for count, (name, rcode) in enumerate(first):
        for rdtype in (1, 28):
            at = world.START + count * world.MS + rdtype
            lookup = world.Lookup(name=name, identifier=10 * count + rdtype, rdtype=rdtype)
            hops += [
                *lookup.query(at),
                *lookup.reply(at + world.MS // 2, rcode=rcode, an=int(not rcode and rdtype == 1)),
            ]
    outcomes = world.outcomes(sorted(hops, key=lambda hop: hop.ts_ns))
    assert not any(finding(one, "SearchPathNODATA") for one in outcomes)


def test_a_search_list_of_one_domain_that_is_tried_after_the_name_itself_is_one(world):
    outcomes = searching(world, ("www.example.com.", NXDOMAIN, 0), ("www.example.com.corp.example.org.", 0, 1))
    assert "SearchPathNXDOMAIN" in explain(outcomes[0]).findings
    assert finding(outcomes[1], "SearchDomainAnswered")


def test_a_public_name_answered_under_a_search_domain_is_told(world):
    outcomes = searching(
        world,
        ("www.example.com.shop.svc.cluster.local.", NXDOMAIN, 0),
        ("www.example.com.svc.cluster.local.", NXDOMAIN, 0),
        ("www.example.com.corp.example.org.", 0, 1),
    )
    words = finding(outcomes[2], "SearchDomainAnswered")
    assert "www.example.com. was answered under the search domain corp.example.org." in words


@pytest.mark.parametrize("name", ["www.example.com.", "db.shop.svc.cluster.local."])
def test_a_name_that_a_search_list_is_meant_to_find_is_nothing_special(world, name):
    search_prefix = name.split(".svc")[0].rstrip(".")
    outcomes = searching(
        world,
        (f"{search_prefix}.shop.svc.cluster.local.", NXDOMAIN, 0),
        (f"{search_prefix}.svc.cluster.local.", NXDOMAIN, 0),
        (name, 0, 1),
    )
    assert finding(outcomes[-1], "SearchDomainAnswered") is None


def test_a_service_that_is_an_alias_of_nothing_is_told_from_one_that_does_not_exist(world):
    lookup = world.Lookup()
    alias = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 30, 7) + b"\x05mysql\0"
    outcome = world.outcome(lookup.query(), lookup.reply(rcode=NXDOMAIN, an=1, tail=alias))
    words = finding(outcome, "ExternalNameNotFound")
    assert "Service default/redis-master is an alias (ExternalName) of mysql." in words
    assert "search domains do not apply" in words


def test_autopaths_alias_of_the_bare_name_is_no_external_name(world):
    lookup = world.Lookup(name="example.com.svc.cluster.local.")
    alias = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 30, 13) + b"\x07example\x03com\0"
    outcome = world.outcome(lookup.query(), lookup.reply(rcode=NXDOMAIN, an=1, tail=alias))
    assert finding(outcome, "ExternalNameNotFound") is None


@pytest.mark.parametrize(("opcode", "name"), [(0, "QUERY"), (2, "STATUS"), (4, "NOTIFY"), (5, "UPDATE"), (6, "DSO")])
def test_the_opcode_is_in_the_line(world, opcode, name):
    lookup = world.Lookup(rdtype=6)
    question, answer = (
        raw[:2] + bytes([raw[2] | opcode << 3]) + raw[3:] for raw in (lookup.question(), lookup.answer(rcode=NXDOMAIN))
    )
    outcome = world.outcome(lookup.query(content=question), lookup.reply(content=answer))
    (one,) = lines_of([outcome])
    assert one.opcode == name
    assert one.findings == (["NameNotFound"] if opcode == 0 else [])
    assert row(one).split()[4] == ("SOA" if opcode == 0 else fit(name, 5).strip())


def test_redaction_takes_names_out_of_the_evidence_of_replies(world):
    lookup = world.Lookup()
    wrong = world.Lookup(name="secret.example.net.").answer()
    outcome = world.outcome(lookup.query(), lookup.reply(content=wrong))
    (one,) = lines_of([outcome])
    Redaction(b"key").apply(one)
    assert "secret" not in msgspec.json.encode(one).decode()
    assert "redis" not in msgspec.json.encode(one).decode()
