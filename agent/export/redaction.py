"""Session lines without what was looked up, for clusters where names are confidential.

Each name becomes a word of its own, the same one throughout one run of the agent: lines of one name can still be found
together (a pseudonym, RFC 6973 6.1.2). The words are made with a key, so that who reads the lines cannot try out names
that they suspect. Data of records and EDNS options goes altogether: an address tells a name as well.
"""

from __future__ import annotations

import re
from hashlib import blake2s
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.export.line import Line

HIDDEN = "redacted"
SECTIONS = ("answer", "authority", "additional")
WORD_BYTES = 8
"""A node with a million names sees two with one word once in 37 million runs."""


QUOTED = re.compile(r'"[^"]*"')


def unquoted(words: str) -> str:
    """A sentence without what stands between quotes: names, and what servers write themselves (RFC 8914)."""
    return QUOTED.sub(HIDDEN, words)


class Redaction:
    """Takes names out of lines.

    Args:
        key: up to 32 bytes; the same key makes the same words.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def word(self, name: str) -> str:
        """What stands for a name, in whatever case it is written (RFC 4343)."""
        digest = blake2s(name.lower().encode(), key=self._key, digest_size=WORD_BYTES)
        return f"{HIDDEN}-{digest.hexdigest()}."

    def apply(self, line: Line) -> None:
        """Take everything out of a line that tells what was looked up, and what was answered.

        The findings stay, without their sentences: those name Services and addresses.
        """
        for named in (line.question, line.upstream_of, *line.upstream):
            if named is not None and named.name is not None:
                named.name = self.word(named.name)
        line.remarks = []
        if line.cause is not None:
            line.cause.message = unquoted(line.cause.message)
            line.cause.evidence = [unquoted(words) for words in line.cause.evidence]
        for message in line.messages:
            for content in ("query_message", "response_message"):
                if content in message:
                    message[content] = self._content(message[content])

    def _content(self, content: dict[str, Any]) -> dict[str, Any]:
        """A message as `agent.wire.render.render` has it."""
        question, edns = content["question"], content["edns"]
        sections = {name: [self._record(record) for record in content[name]] for name in SECTIONS}
        return content | {
            "question": question and question | {"name": self.word(question["name"])},
            **sections,
            "edns": edns and edns | {"options": [option | {"data": HIDDEN} for option in edns["options"]]},
        }

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"name": self.word(record["name"]), "data": HIDDEN}
