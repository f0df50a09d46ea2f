"""What became of the frames of a capture that are in no line: each is counted once, under the name of what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.session.model import Background
from agent.wire.packet import Flaw
from agent.wire.render import opcode_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.capturefile.playback import Playback
    from agent.session.counts import Counts


class Sums(NamedTuple):
    """Everything that is counted in a replay."""

    playback: Playback
    counts: Counts
    frames: int
    told: int
    """Frames that are in a line, or in what is named below as a whole: a connection, a server's own lookup."""
    unread_bytes: int
    steps: int
    """Times that the clock was set."""

    def unaccounted(self) -> int:
        """Frames that are in no line and in no sum, or in two: 0."""
        return self.frames - self.told - sum(row.count(self) for row in ROWS if row.of_frames)


class Row(NamedTuple):
    """One sum. `{}` in its words stands for what is found out beside the number."""

    one: str
    many: str
    count: Callable[[Sums], int]
    detail: Callable[[Sums], str] = lambda _sums: ""
    of_frames: bool = True
    """Whether it counts frames, which then are in no other row."""


def _flaws(*kinds: Flaw) -> Callable[[Sums], int]:
    return lambda sums: sum(sums.playback.flaws[kind] for kind in kinds)


def _opcodes(sums: Sums) -> str:
    found = sums.counts.questionless
    if len(found) == 1:
        return ", ".join(map(opcode_to_text, found))
    return ", ".join(f"{opcode_to_text(opcode)} {number}" for opcode, number in sorted(found.items()))


def _cut(sums: Sums) -> int:
    return sums.playback.cut + sums.counts.cut + sums.playback.flaws[Flaw.CUT]


def _background(kind: Background) -> Callable[[Sums], int]:
    return lambda sums: sums.counts.background[kind]


def _unanswered(kind: Background) -> Callable[[Sums], str]:
    def words(sums: Sums) -> str:
        silent, number = sums.counts.background_unanswered[kind], sums.counts.background[kind]
        if not silent:
            return ""
        return " (unanswered)" if silent == number else f" ({silent} unanswered)"

    return words


READABLE = frozenset({Flaw.NOT_IP, Flaw.LINK_TYPE, Flaw.CUT})
ROWS: tuple[Row, ...] = (
    Row(
        "packet of other protocols or ports",
        "packets of other protocols or ports",
        lambda sums: sums.playback.other + sums.playback.flaws[Flaw.NOT_IP],
    ),
    Row("frame of an unknown link type", "frames of unknown link types", _flaws(Flaw.LINK_TYPE)),
    Row(
        "frame not readable as IP",
        "frames not readable as IP",
        _flaws(*(kind for kind in Flaw if kind not in READABLE)),
    ),
    Row(
        "packet in a tunnel that is not read",
        "packets in tunnels that are not read",
        lambda sums: sums.playback.tunnels,
    ),
    Row("packet captured twice", "packets captured twice", lambda sums: sums.playback.copies),
    Row(
        "fragment of a larger datagram",
        "fragments of larger datagrams",
        lambda sums: sums.playback.fragments,
    ),
    Row(
        "datagram with fragments missing",
        "datagrams with fragments missing",
        lambda sums: sums.playback.incomplete,
        of_frames=False,
    ),
    Row("datagram without bytes", "datagrams without bytes", lambda sums: sums.playback.empty),
    Row(
        "message cut by the capture (snap length {}): capture with -s 0",
        "messages cut by the capture (snap length {}): capture with -s 0",
        _cut,
        lambda sums: str(sums.playback.snap_length),
    ),
    Row("message not readable as DNS", "messages not readable as DNS", lambda sums: sums.counts.malformed),
    Row(
        "message without a question ({})",
        "messages without a question ({})",
        lambda sums: sums.counts.questionless.total(),
        _opcodes,
    ),
    Row(
        "reply to a query before the capture",
        "replies to queries before the capture",
        lambda sums: sums.counts.started_mid_lookup,
    ),
    Row(
        "message of a lookup that was told before",
        "messages of lookups that were told before",
        lambda sums: sums.counts.late,
    ),
    Row("ICMP error about no open lookup", "ICMP errors about no open lookup", lambda sums: sums.counts.stray_errors),
    Row(
        "health check or priming{}",
        "health checks or primings{}",
        _background(Background.HEALTH_CHECK),
        _unanswered(Background.HEALTH_CHECK),
        of_frames=False,
    ),
    Row(
        "loop probe{}",
        "loop probes{}",
        _background(Background.LOOP_PROBE),
        _unanswered(Background.LOOP_PROBE),
        of_frames=False,
    ),
    Row(
        "refresh of a cached answer{}",
        "refreshes of cached answers{}",
        _background(Background.REFRESH),
        _unanswered(Background.REFRESH),
        of_frames=False,
    ),
    Row(
        "exchange with an upstream, told with its lookup",
        "exchanges with upstreams, told with their lookups",
        lambda sums: sums.counts.upstream_exchanges,
        of_frames=False,
    ),
    Row(
        "TCP connection without a lookup",
        "TCP connections without a lookup",
        lambda sums: sums.counts.unused_connections,
        of_frames=False,
    ),
    Row(
        "further message of a long answer",
        "further messages of long answers",
        lambda sums: sums.counts.further,
        of_frames=False,
    ),
    Row(
        "byte of TCP connections not read",
        "bytes of TCP connections not read",
        lambda sums: sums.unread_bytes,
        of_frames=False,
    ),
    Row("step of the clock", "steps of the clock", lambda sums: sums.steps, of_frames=False),
)


def in_words(sums: Sums) -> list[str]:
    """Every sum that is not 0."""
    found = ((row, row.count(sums)) for row in ROWS)
    return [
        f"{number} {(row.one if number == 1 else row.many).format(row.detail(sums))}" for row, number in found if number
    ]
