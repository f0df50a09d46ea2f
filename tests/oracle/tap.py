"""What a DNS server says about itself: its dnstap stream, read by the `dnstap` command."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.lab import Lab, wait_until
from tests.lab.servers import find_program

BITS = {"CLIENT_QUERY": 1, "CLIENT_RESPONSE": 2, "FORWARDER_QUERY": 4, "FORWARDER_RESPONSE": 8}
HEADER = re.compile(r"^;; opcode: \w+, status: (\w+), id: (\d+)$", re.MULTILINE)
QUESTION = re.compile(r"^;(\S+)\s+IN\s+(\S+)$", re.MULTILINE)
FLUSH_SECONDS = 5.0
"""Servers send what they tapped once a second."""


class Told(NamedTuple):
    """One DNS message, as the server or as dnstrail tells of it."""

    type: str
    protocol: str
    family: str
    client: tuple[str, int]
    """Who asked: the query's address and port; "" for an address that the server does not tell."""
    server: str
    """Who was asked; "" where the server does not tell."""
    id: int
    name: str
    rdtype: str
    rcode: str | None


class Tap:
    """A unix socket that servers send dnstap to, and what has come."""

    def __init__(self, lab: Lab, name: str = "tap") -> None:
        program = find_program("dnstap")
        assert program is not None, "the program dnstap is missing: `make setup-dev` installs it"
        self.socket = f"/run/dnstrail-lab/{lab.id}/{name}.sock"
        self.out = Path(f"/run/dnstrail-lab/{lab.id}/{name}.json")
        with self.out.open("w") as out:
            self.process = lab.processes.popen([program, "-j", "-u", self.socket], stdout=out)
        wait_until(Path(self.socket).exists, "dnstap to listen")

    def messages(self) -> list[Told]:
        """All that came, in the server's order."""
        text = self.out.read_text()
        return [_told(json.loads(line)["message"]) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for(self, complete: Callable[[list[Told]], bool]) -> list[Told]:
        """All that came once it is complete; after a while, what there is."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while not complete(self.messages()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.messages()


def _told(message: dict[str, Any]) -> Told:
    kind = "response" if message["type"].endswith("RESPONSE") else "query"
    text = message[f"{kind}_message"]
    header, question = HEADER.search(text), QUESTION.search(text)
    assert header, text
    assert question, text
    return Told(
        message["type"],
        message["socket_protocol"],
        message["socket_family"],
        (message.get("query_address", ""), message["query_port"]),
        message.get("response_address", ""),
        int(header[2]),
        question[1].lower(),
        question[2],
        header[1] if kind == "response" else None,
    )


def told_by_dnstrail(line: dict[str, Any]) -> list[Told]:
    """The messages of a session line that dnstap has too."""
    told = []
    for message in line["Messages"]:
        kind = "response" if message["type"].endswith("RESPONSE") else "query"
        content = message[f"{kind}_message"]
        if message["type"] in BITS:
            told.append(
                Told(
                    message["type"],
                    message["socket_protocol"],
                    message["socket_family"],
                    (message["query_address"], message["query_port"]),
                    message["response_address"],
                    content["id"],
                    content["question"]["name"].lower(),
                    content["question"]["type"],
                    content["rcode"] if kind == "response" else None,
                )
            )
    return told


def mask(messages: list[Told]) -> int:
    """The OR of the messages' bits."""
    return reduce(or_, (BITS[one.type] for one in messages), 0)


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    """Both sides tell the same, in any order; else fail with what only one of them has."""
    mine, other = Counter(ours), Counter(theirs)
    only_mine = [f"only dnstrail: {one}" for one in (mine - other).elements()]
    only_other = [f"only dnstap:   {one}" for one in (other - mine).elements()]
    if only_mine or only_other:
        pytest.fail("\n".join([f"{len(ours)} by dnstrail, {len(theirs)} by dnstap", *only_mine, *only_other]))
