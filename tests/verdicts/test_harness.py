"""The harness finds what is wrong, and its matrix can be read."""

from __future__ import annotations

import ctypes
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kernel.conftest import Line
from tests.verdicts import __main__ as command
from tests.verdicts.campaign import ONCE, Lines, Pace, Result, Run, _Campaign, judge
from tests.verdicts.case import Asked, Case, Connection, Hop, Injection, Lost
from tests.verdicts.matrix import by_code, by_fault, summary
from tests.verdicts.stalls import Stalls

CLIENT, SERVER, OTHER = 1, 2, 3
LAB: Any = SimpleNamespace(servers=[SimpleNamespace(netns_id=SERVER)])
CASE = Case(
    fault="a rule drops it",
    code="PolicyDrop",
    inject=lambda _injection: [],
    says=("FORWARD",),
    last_hop=lambda _lab: Hop("drop", OTHER, "veth1"),
)


@dataclass
class Told:
    """What a dnstrail could have said of one lookup."""

    injection: Injection
    name: str | None = None
    rdtype: str = "A"
    code: str | None = "PolicyDrop"
    confidence: str = "high"
    message: str = "A netfilter rule (FORWARD) dropped the query."
    status: str = "Failed"
    bitmap: int = 0
    findings: tuple[str, ...] = ()
    interface: str = "veth1"
    netns: int = CLIENT
    port: int = 4711
    later: tuple[Line, ...] = ()

    def line(self) -> Line:
        cause = {"Code": self.code, "Confidence": self.confidence, "Message": self.message, "Evidence": ["seen"]}
        return {
            "Question": {"Name": f"{self.name}.", "Type": self.rdtype} if self.name else None,
            "Protocol": "UDP" if self.name else "TCP",
            "Client": {"Netns": self.netns, "Port": self.port},
            "Cause": cause if self.code else None,
            "Status": self.status,
            "BitMap": self.bitmap,
            "Findings": list(self.findings),
            "Path": [hop("tx", CLIENT, "eth0", self.port), hop("drop", OTHER, self.interface, self.port), *self.later],
        }


def hop(event: str, netns: int, interface: str, port: int) -> Line:
    ends = {"Source": f"192.0.2.1:{port}", "Destination": "192.0.2.53:53"}
    return {"Message": "STUB_QUERY", "Event": event, "Netns": netns, "Interface": interface, **ends}


@pytest.fixture
def injection() -> Injection:
    return Injection(LAB)


def judged(case: Case, injection: Injection, lost: list[Lost], told: list[Told]) -> Result:
    result = Result(case)
    judge(result, Run(case, injection, lost), [one.line() for one in told])
    return result


def test_a_lookup_that_is_told_right_is_no_mistake(injection):
    result = judged(CASE, injection, [injection.name], [Told(injection, injection.name)])
    assert result.good
    assert (result.lost, result.reported) == (1, {"PolicyDrop": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": "NoRoute"},
        {"code": None},
        {"confidence": "medium"},
        {"message": "Something dropped the query."},
        {"status": "Succeeded"},
        {"interface": "veth2"},
    ],
    ids=str,
)
def test_each_way_to_be_wrong_is_a_mistake(injection, wrong):
    assert not judged(CASE, injection, [injection.name], [Told(injection, injection.name, **wrong)]).good


@pytest.mark.parametrize(
    ("message", "port", "good"), [("STUB_QUERY", 4711, False), ("STUB_RESPONSE", 4711, True), (None, 4712, True)]
)
def test_the_last_hop_is_the_last_of_its_message_and_of_its_connection(injection, message, port, good):
    later = hop("rx", SERVER, "eth0", port) | {"Message": message}
    assert judged(CASE, injection, [injection.name], [Told(injection, injection.name, later=(later,))]).good is good


def test_a_lost_lookup_without_a_session_is_missed(injection):
    result = judged(CASE, injection, [injection.name], [])
    assert not result.good
    assert result.reported == {"missed": 1}


def test_a_fault_that_loses_nothing_is_no_fault(injection):
    assert not judged(CASE, injection, [], []).good
    assert judged(replace(CASE, probabilistic=True), injection, [], []).good


def test_a_lookup_that_was_not_lost_may_not_be_blamed(injection):
    lost, fine = injection.names(2)
    told = [Told(injection, lost), Told(injection, fine)]
    assert not judged(CASE, injection, [lost], told).good
    assert judged(CASE, injection, [lost], [told[0], replace(told[1], code=None, status="Succeeded")]).good


def test_half_of_a_pair_is_told_from_the_other(injection):
    told = [
        Told(injection, injection.name, "A", code=None, status="Succeeded"),
        Told(injection, injection.name, "AAAA"),
    ]
    assert judged(CASE, injection, [(injection.name, "AAAA")], told).good
    assert not judged(CASE, injection, [injection.name], told).good


def test_a_connection_is_known_by_its_clients_end(injection):
    lost = Connection(CLIENT, injection.port)
    told = Told(injection, port=injection.port)
    assert judged(CASE, injection, [lost], [told]).good
    assert not judged(CASE, injection, [lost], [replace(told, port=injection.port + 1)]).good
    assert not judged(CASE, injection, [lost], [replace(told, netns=OTHER)]).good


def test_what_a_proxy_asks_is_not_its_clients_lookup_and_may_have_the_same_cause(injection):
    lost = Asked(injection.name, CLIENT, injection.port)
    own = Told(injection, injection.name, port=injection.port)
    of_proxy = replace(own, port=injection.port + 1)
    assert judged(CASE, injection, [lost], [own, of_proxy]).good
    assert judged(CASE, injection, [lost], [of_proxy]).reported == {"missed": 1}


@pytest.mark.parametrize(("bitmap", "good"), [(0, True), (1, False)])
def test_the_bitmap_is_compared_where_one_is_demanded(injection, bitmap, good):
    case = replace(CASE, bitmaps=frozenset({0}))
    assert judged(case, injection, [injection.name], [Told(injection, injection.name, bitmap=bitmap)]).good is good


def test_a_case_may_look_at_the_whole_line(injection):
    case = replace(CASE, wrong=lambda _lab, line: "too late" if line["Client"]["Port"] == OTHER else "")
    told = Told(injection, injection.name)
    assert judged(case, injection, [injection.name], [told]).good
    assert not judged(case, injection, [injection.name], [replace(told, port=OTHER)]).good


def test_what_a_server_asks_is_not_its_clients_lookup(injection):
    assert not judged(CASE, injection, [injection.name], [Told(injection, injection.name, netns=SERVER)]).good


def test_a_limit_allows_another_code_but_not_for_certain(injection):
    case = replace(CASE, also=frozenset({"Unknown"}), limit="it is not looked into")
    told = Told(injection, injection.name, code="Unknown", confidence="low")
    assert judged(case, injection, [injection.name], [told]).good
    assert not judged(case, injection, [injection.name], [replace(told, confidence="high")]).good


def test_another_code_needs_a_reason():
    with pytest.raises(AssertionError, match="reason"):
        replace(CASE, also=frozenset({"Unknown"}))


@pytest.mark.parametrize(
    ("findings", "good"), [(("Truncated",), True), ((), False), (("Truncated", "Retransmitted"), False)]
)
def test_findings_are_compared(injection, findings, good):
    case = replace(
        CASE, code=None, status="Succeeded", findings=frozenset({"Truncated"}), exact=True, last_hop=None, says=()
    )
    told = Told(injection, injection.name, code=None, status="Succeeded", findings=findings)
    assert judged(case, injection, [injection.name], [told]).good is good


def test_lines_are_found_by_name_and_by_port_and_read_when_they_are_whole(injection, tmp_path: Path):
    mine, other = Told(injection, f"n0.{injection.name}"), Told(injection, "www.example.com")
    nameless = Told(injection, port=injection.port)
    texts = [json.dumps(told.line(), separators=(",", ":")) for told in (mine, other, nameless)]
    path = tmp_path / "lines"
    path.write_text("\n".join(texts)[:-10])
    lines = Lines(path)
    lines.read()
    assert lines.of(injection) == [mine.line()]
    path.write_text("\n".join([*texts, ""]))
    lines.read()
    assert lines.of(injection) == [mine.line(), nameless.line()]
    assert not lines.of(Injection(LAB))


def results(injection: Injection) -> list[Result]:
    second = replace(CASE, fault="a route is missing", code="NoRoute", says=())
    third = replace(CASE, fault="nothing at all", code=None, status="Succeeded", last_hop=None, says=())
    limited = replace(CASE, fault="in a tunnel", also=frozenset({"Unknown"}), limit="it is not looked into")
    right = Told(injection, injection.name)
    return [
        judged(CASE, injection, [injection.name], [right]),
        judged(second, injection, [injection.name], [right]),
        judged(third, injection, [injection.name], [replace(right, code=None, status="Succeeded")]),
        judged(limited, injection, [injection.name], [replace(right, code="Unknown", confidence="low")]),
        Result(replace(CASE, fault="no such device"), unsupported="no such device"),
    ]


def test_the_matrix_by_fault_shows_what_was_expected_and_what_was_said(injection):
    shown = by_fault(results(injection))
    assert shown.splitlines() == [
        "PolicyDrop           lookups  PolicyDrop  Unknown",
        "  a rule drops it          1         [1]        .",
        "  in a tunnel              1           .        1  (1)",
        "  no such device           .           .        .  (2)",
        "",
        "NoRoute              lookups  NoRoute  PolicyDrop",
        "  a route is missing       1        .           1  1 MISTAKES",
        "",
        "no cause             lookups  none",
        "  nothing at all           1   [1]",
        "",
        "(1) limit: it is not looked into; so it may be called Unknown, and never for certain",
        "(2) not on this kernel: no such device",
    ]


def test_the_matrix_by_code_has_its_rows_numbers_as_columns(injection):
    shown = by_code(results(injection))
    assert shown.splitlines() == [
        "   expected   faults    1 2 3   4",
        " 1 PolicyDrop      2  [1] . 1   .",
        " 2 NoRoute         1    1 . .   .",
        " 3 Unknown         .    . . .   .",
        " 4 no cause        1    . . . [1]",
        "   sum             4    2 . 1   1",
    ]


def test_the_sums_are_told(injection):
    assert summary(results(injection)) == (
        "3 of 4 faults diagnosed correctly over 4 lookups; 1 with a limit that is named; "
        "1 cannot be injected on this kernel."
    )


@pytest.mark.parametrize(("which", "code"), [(0, 0), (1, 1), (3, 0), (4, 1)])
def test_the_exit_code_says_whether_all_is_right(monkeypatch, capsys, injection, which, code):
    monkeypatch.setattr(command, "run", lambda *_args, **_kw: [results(injection)[which]])
    monkeypatch.setattr("sys.argv", ["verdicts"])
    assert command.main() == code
    assert capsys.readouterr().out


def test_words_that_no_fault_has_are_a_mistake_of_the_caller(monkeypatch):
    monkeypatch.setattr("sys.argv", ["verdicts", "no such fault"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2


def test_only_what_the_kernel_decides_is_repeated_often():
    pace = Pace(each=3, probabilistic=20)
    assert (pace.of(CASE), pace.of(replace(CASE, probabilistic=True))) == (3, 20)


def test_what_was_told_wrong_is_tried_once_more_and_only_once():
    campaign = _Campaign({CASE.fault: Result(CASE, mistakes=["told wrong"])}, ONCE, progress=False)
    assert list(campaign._begin_again([CASE])) == [CASE]
    assert campaign.results[CASE.fault].good
    assert campaign.results[CASE.fault].at_first == ["told wrong"]
    assert "1 tried twice, because the machine stood still" in summary([*campaign.results.values()])
    assert list(campaign._begin_again([CASE])) == []


def test_a_machine_that_stood_still_is_noticed():
    begun = time.monotonic()
    with Stalls() as stalls:
        # Not released meanwhile: nothing else runs in this process.
        ctypes.PyDLL(None).usleep(300_000)
        time.sleep(0.1)
    assert 0.2 < stalls.longest_seconds(begun, time.monotonic()) < 5
    assert stalls.longest_seconds(begun - 10, begun - 5) == 0
