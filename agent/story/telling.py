"""A problem as a story: what was asked, how far it got, what happened, how sure that is, and what to do.

Sentences are made here, of values, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import RUNBOOKS
from agent.explain.verdict import CONFIDENCE_WORDS
from agent.session.outcome import Bit, Status
from agent.story.drawing import INDENT, RED, YELLOW, drawing
from agent.story.problems import MAX_CLIENTS, MAX_EXAMPLES, MAX_OF_CAUSE, Group, Problems
from agent.story.text import Piece, listed, number, painted, paragraph, seconds_words, time_words
from agent.story.ways import NOT_TAKEN, endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agent.export.line import Line
    from agent.story.text import Look

GREEN = "32"
NO_CAUSE, NO_PROBLEM = "No cause", "No problem"
LABEL_COLUMNS = 15
MAX_EVIDENCE = 6
UNKNOWN = "Unknown"


class Outcome(NamedTuple):
    """How lookups of one status ended, and the colour of that."""

    words: str
    colour: str


OUTCOMES = {
    Status.FAILED: Outcome("failed", RED),
    Status.SAMPLE_LOSS: Outcome("ended out of sight", YELLOW),
    Status.SUCCEEDED: Outcome("succeeded, but not at once", YELLOW),
}
FINE = Outcome("succeeded", GREEN)


def stories(problems: Problems, look: Look) -> Iterator[str]:
    """All that there is to tell, row by row."""
    for group in problems.told():
        yield from story(group, look)
        yield ""
    if problems.beyond:
        yield from paragraph(_beyond(problems), look, "", "")
    yield from paragraph(_total(problems), look, "", "")


def story(group: Group, look: Look) -> Iterator[str]:
    """One problem."""
    line = group.example
    outcome = outcome_of(line)
    node = f" on {line.node}" if line.node else ""
    code = line.cause.code if line.cause else NO_PROBLEM if outcome is FINE else NO_CAUSE
    title = f"{code}{node}: {number(group.lookups, 'lookup')} {outcome.words}"
    yield painted(Piece(title, outcome.colour), look)
    yield from paragraph(" ".join(beginning(line)), look, INDENT, INDENT)
    if group.lookups > 1:
        yield from paragraph(" ".join(_repeats(group)), look, INDENT, INDENT)
    yield ""
    yield from drawing(line, look)
    if line.cause is not None or line.findings:
        yield ""
    for label, text in explanation(line):
        yield from paragraph(text, look, f"{INDENT}{label:<{LABEL_COLUMNS}}", " " * (len(INDENT) + LABEL_COLUMNS))


def outcome_of(line: Line) -> Outcome:
    """How the lookup ended, for people."""
    if line.cause is None and line.status == Status.SUCCEEDED:
        return FINE
    return next((words for status, words in OUTCOMES.items() if line.status == status), OUTCOMES[Status.FAILED])


def beginning(line: Line) -> Iterator[str]:
    """Who asked whom for what, and when; how it went on."""
    yield f"{_client(line)} asked {_server(line)} for {_question(line)} at {time_words(line.time)}."
    if line.upstream_of is not None:
        parent = line.upstream_of
        yield f"That was for the lookup of {parent.name} by {parent.client}."
    if line.attempts > 1:
        yield f"It asked {number(line.attempts, 'time')}."
    reply = _reply(line)
    if reply:
        yield reply


def _client(line: Line) -> str:
    client = line.client
    pod = None if client.pod is None else f"pod {client.namespace}/{client.pod}"
    pid = None if client.pid is None or pod else f"pid {client.pid}"
    return _detailed(" in ".join(filter(None, (client.process, pod))), (client.address, client.workload, pid))


def _server(line: Line) -> str:
    server = line.server
    by = f" by {server.translated_by}" if server.translated_by else ""
    details = (
        server.service and f"Service {server.service}",
        server.backend and f"translated to {server.backend}{by}",
        server.process if server.pod is None else f"pod {server.namespace}/{server.pod}",
    )
    return _detailed(endpoint(server.address, server.port), details)


def _detailed(word: str, details: Iterable[str | None]) -> str:
    """`word (detail, detail)`; without a word the details take its place."""
    known = ", ".join(filter(None, details))
    return f"{word} ({known})" if word and known else word or known


def _question(line: Line) -> str:
    if line.question is None:
        return "a TCP connection"
    kind = "" if line.opcode in (None, "QUERY") else f"{line.opcode} of "
    return f"{kind}{line.question.name} ({line.question.type}) over {line.protocol}"


def _reply(line: Line) -> str:
    """What is known of the reply, unless the cause speaks of nothing else."""
    if line.cause is not None and line.cause.code in NOT_TAKEN:
        return ""
    if line.rcode is None:
        return "No reply was seen."
    if line.path_bit_map & Bit.REPLY_DROPPED and line.status != Status.SUCCEEDED:
        return f"The server replied {line.rcode}, and the reply was lost."
    after = "" if line.duration_seconds is None else f" after {seconds_words(line.duration_seconds)}"
    return f"The reply was {line.rcode}{after}."


def _repeats(group: Group) -> Iterator[str]:
    yield f"Such lookups were made from {time_words(group.first)} to {time_words(group.last)}."
    if group.held:
        yield f"Of {number(group.held, 'lookup')} there is no line, because the agent held it back (--failure-rate)."
    if len(group.clients) > 1:
        count = f"{MAX_CLIENTS} clients or more" if group.more_clients else number(len(group.clients), "client")
        yield f"They were of {count}: {_examples(list(group.clients))}."
    if len(group.names) > 1:
        yield f"They asked for {_examples(list(group.names))}."


def _examples(words: list[str]) -> str:
    first = words[:MAX_EXAMPLES]
    return listed(words) if words == first else f"{', '.join(first)} and others"


def explanation(line: Line) -> Iterator[tuple[str, str]]:
    """Labels and what stands behind them."""
    for label, texts in EXPLANATION:
        for position, text in enumerate(texts(line)):
            yield "" if position else label, text


def _happened(line: Line) -> Iterator[str]:
    if line.cause is not None:
        yield line.cause.message


def _sure(line: Line) -> Iterator[str]:
    if line.cause is None:
        return
    words = next((words for known, words in CONFIDENCE_WORDS.items() if known == line.cause.confidence), "")
    if line.cause.code == UNKNOWN:
        yield "The cause is not known."
    else:
        yield f"{line.cause.confidence}: {words}." if words else f"{line.cause.confidence}."


def _evidence(line: Line) -> Iterator[str]:
    if line.cause is None:
        return
    yield from line.cause.evidence[:MAX_EVIDENCE]
    if len(line.cause.evidence) > MAX_EVIDENCE:
        yield f"(and {len(line.cause.evidence) - MAX_EVIDENCE} more in the line)"


def _findings(line: Line) -> Iterator[str]:
    """A finding that has a sentence begins it."""
    plain = [name for name in line.findings if not any(remark.startswith(f"{name}:") for remark in line.remarks)]
    if plain:
        yield f"{', '.join(plain)}."
    yield from line.remarks


def _to_do(line: Line) -> Iterator[str]:
    if line.cause is not None:
        yield line.cause.remedy


def _read_on(line: Line) -> Iterator[str]:
    if line.cause is not None:
        yield line.cause.doc
        if line.cause.code in RUNBOOKS:
            yield f"docs/runbooks/{RUNBOOKS[line.cause.code]}.md"


EXPLANATION: tuple[tuple[str, Callable[[Line], Iterator[str]]], ...] = (
    ("What happened", _happened),
    ("How sure", _sure),
    ("Evidence", _evidence),
    ("Also noted", _findings),
    ("What to do", _to_do),
    ("Read on", _read_on),
)


def _beyond(problems: Problems) -> str:
    causes = ", ".join(f"{cause or 'no cause'} {count:,}" for cause, count in problems.beyond.most_common())
    return (
        f"{number(problems.beyond.total(), 'more lookup')} are not told, because they are of further kinds: "
        f"of one cause, {MAX_OF_CAUSE} kinds are told apart. By cause: {causes}."
    )


def _total(problems: Problems) -> str:
    """The last row: how much there was."""
    counts = problems.counts
    parts = [
        f"{number(counts.kinds, 'problem')} in {number(counts.troubled, 'lookup')}"
        if counts.troubled
        else "No problems",
        f"{number(counts.fine, 'lookup')} without any",
    ]
    if counts.unwanted:
        parts.append(f"{number(counts.unwanted, 'lookup')} left out by the filters")
    return f"{'; '.join(parts)}."
