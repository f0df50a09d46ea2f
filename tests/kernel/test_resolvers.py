"""What real resolvers do when servers are silent, fail or truncate, and what their sessions then look like.

Sources of the expectations: glibc resolv/res_send.c, musl src/network/res_msend.c, Go net/dnsclient_unix.go, c-ares
src/lib/ares_process.c, BIND's dig; all of them measured too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import dns.message
import pytest

from agent.lab import VIP, Lab, namespaces
from agent.lab.processes import PATIENCE
from tests.kernel.conftest import Line, Watch
from tests.kernel.named import masks, new_name, of_name, wait_for, wait_for_lines, watching
from tests.lab.scripted import scripted

pytestmark = pytest.mark.kernel

CACHE = Path(__file__).parents[2] / ".cache/resolvers"
OPTIONS = "timeout:1 attempts:2"
RUN_SECONDS = 20.0
BUILD_SECONDS = 100.0
SOON_SECONDS = 0.2 * PATIENCE
ANSWERED = ("Succeeded", 3, 51)
SILENT = ("Failed", 1, 17)
REFUSED_ANSWER = ("Failed", 3, 51)
WORDS = ("ok", "silent", "servfail", "truncated", "aaaa-silent")

GETADDRINFO_C = """
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found = NULL;
	int error = getaddrinfo(argc > 1 ? argv[1] : "", NULL, &hints, &found);

	for (struct addrinfo *one = found; one; one = one->ai_next) {
		char text[64] = "";

		getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST);
		puts(text);
	}
	return error != 0;
}
"""
LOOKUP_GO = """
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	found, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, address := range found {
		fmt.Println(address)
	}
}
"""
CARES_PY = """
import sys
import pycares

found = []
channel = pycares.Channel()
channel.getaddrinfo(sys.argv[1], None, callback=lambda result, error: found.append((result, error)))
channel.wait()
sys.exit(found[0][1] is not None)
"""


# --- the resolvers


def _built(source: str, suffix: str, compiler: Sequence[str], environment: Mapping[str, str]) -> str:
    """Compile a program, unless it was before."""
    digest = hashlib.sha256((source + " ".join(compiler)).encode()).hexdigest()[:16]
    program = CACHE / digest
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        text = program.with_suffix(suffix)
        text.write_text(source)
        fresh = CACHE / f"{digest}-{os.getpid()}"
        command = [*compiler, "-o", str(fresh), str(text)]
        subprocess.run(command, check=True, timeout=BUILD_SECONDS, env={**os.environ, **environment})
        fresh.rename(program)
    return str(program)


def resolver_command(resolver: str) -> list[str]:
    """The program, to which the name is added.

    Skips the test where it is not installed.
    """
    if resolver == "glibc":
        return ["getent", "ahosts"]
    if resolver == "musl":
        if not shutil.which("musl-gcc"):
            pytest.skip("musl-gcc is missing: install the Debian package musl-tools")
        return [_built(GETADDRINFO_C, ".c", ["musl-gcc", "-static"], {})]
    if resolver == "go":
        if not shutil.which("go"):
            pytest.skip("go is missing")
        return [_built(LOOKUP_GO, ".go", ["go", "build"], {"CGO_ENABLED": "0", "GO111MODULE": "off"})]
    if not importlib.util.find_spec("pycares"):
        pytest.skip("pycares is missing")
    return [sys.executable, "-c", CARES_PY]


@dataclass(frozen=True)
class Run:
    """One lookup by one resolver."""

    name: str
    exit_status: int
    seconds: float


class Runs:
    """All lookups at once, because most of their time is waiting for servers that say nothing."""

    def __init__(self, lab: Lab, pool: ThreadPoolExecutor) -> None:
        self._lab = lab
        self._pool = pool
        self._futures: dict[tuple[str, str, int], Future[Run]] = {}
        self._commands: dict[str, list[str]] = {}

    def start(self, resolver: str) -> None:
        """Start all of one resolver's, unless it was done."""
        if resolver in self._commands:
            return
        self._commands[resolver] = resolver_command(resolver)
        for word in WORDS:
            for servers in (1, 2):
                self._futures[resolver, word, servers] = self._pool.submit(self._run, resolver, word, servers)

    def of(self, resolver: str, word: str, servers: int) -> Run:
        """One of them, ended."""
        self.start(resolver)
        return self._futures[resolver, word, servers].result(timeout=RUN_SECONDS)

    def _run(self, resolver: str, word: str, servers: int) -> Run:
        name = new_name(word)
        began = time.monotonic()
        client = self._lab.clients[0]
        nameservers = [VIP] if servers == 1 else [server.address for server in self._lab.servers]
        argv = client.resolver_argv([*self._commands[resolver], f"{name}."], options=OPTIONS, nameserver=nameservers)
        done = client.run(argv, check=False, timeout=RUN_SECONDS)
        return Run(name, done.returncode, time.monotonic() - began)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(servers=2) as lab, scripted(lab.servers[0]), scripted(lab.servers[1]):
        yield lab


@pytest.fixture(scope="module")
def watch(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:  # noqa: ARG001  built before
    with watching(tmp_path_factory.mktemp("watch"), "--timeout", "2.5") as watch:
        yield watch


@pytest.fixture(scope="module")
def runs(lab: Lab, watch: Watch) -> Iterator[Runs]:  # noqa: ARG001  it must watch first
    with ThreadPoolExecutor(max_workers=10) as pool:
        yield Runs(lab, pool)


# --- reading lines


def by_type(lines: Sequence[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {"A": [], "AAAA": []}
    for line in sorted(lines, key=lambda line: line["Time"]):
        found[line["Question"]["Type"]].append(line)
    return found


def ids(lines: Sequence[Line]) -> set[int]:
    return {line["TransactionId"] for line in lines}


def ports(lines: Sequence[Line]) -> set[int]:
    return {line["Client"]["Port"] for line in lines}


def attempts(lines: Sequence[Line]) -> int:
    return sum(line["Attempts"] for line in lines)


def over(protocol: str, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["Protocol"] == protocol]


def spread_seconds(lines: Sequence[Line]) -> float:
    times = [datetime.fromisoformat(line["Time"]).timestamp() for line in lines]
    return max(times) - min(times)


# --- all goes well

ALL = pytest.mark.parametrize("resolver", ["glibc", "musl", "go", "cares"])
SERVERS = pytest.mark.parametrize("servers", [1, 2])


@ALL
def test_a_lookup_of_both_families_is_two_sessions_with_ids_of_their_own(runs: Runs, watch: Watch, resolver: str):
    run = runs.of(resolver, "ok", 1)
    assert run.exit_status == 0
    lines = wait_for(watch, run.name, 2)
    assert all((*masks(line), line["Attempts"], line["Cause"]) == (*ANSWERED, 1, None) for line in lines)
    assert len(ids(lines)) == 2
    assert len(ports(lines)) == (2 if resolver == "go" else 1)


# --- silence


class Silence(NamedTuple):
    """What a resolver does about one name and type when nobody answers."""

    resolver: str
    servers: int
    sessions: int
    tries: int

    def __str__(self) -> str:
        return f"{self.resolver}-{self.servers}"


@pytest.mark.parametrize(
    "case",
    [
        Silence("glibc", 1, 1, 2),  # same id, same port
        Silence("glibc", 2, 2, 4),  # same id, a port per server
        Silence("musl", 1, 1, 2),
        Silence("musl", 2, 1, 4),  # same id, same port to all servers at once
        Silence("go", 1, 2, 2),  # new id and port each time
        Silence("go", 2, 4, 4),
        Silence("cares", 1, 2, 2),  # same id, new port after a timeout
        Silence("cares", 2, 4, 4),
    ],
    ids=str,
)
def test_silence_gives_as_many_sessions_as_identities(runs: Runs, watch: Watch, case: Silence):
    resolver, servers, sessions, tries = case
    run = runs.of(resolver, "silent", servers)
    assert run.exit_status != 0
    lines = wait_for(watch, run.name, 2 * sessions)
    for same in by_type(lines).values():
        assert len(same) == sessions
        assert attempts(same) == tries
        assert {masks(line) for line in same} == {SILENT}
        assert {line["Cause"]["Code"] for line in same} == {"ServerNoReply"}
        assert len(ids(same)) == (tries if resolver == "go" else 1)
        assert len(ports(same)) == sessions
        for line in same:
            one_after_another = line["Attempts"] > (servers if resolver == "musl" else 1)
            assert ("Retransmitted" in line["Findings"]) == one_after_another
            assert ("ParallelNameservers" in line["Findings"]) == (resolver == "musl" and servers == 2)


@SERVERS
@pytest.mark.parametrize(("resolver", "tries"), [("glibc", None), ("musl", None), ("go", None), ("cares", 1)])
def test_half_an_answer_leaves_the_other_half_a_failed_session(
    runs: Runs, watch: Watch, resolver: str, servers: int, tries: int | None
):
    run = runs.of(resolver, "aaaa-silent", servers)
    assert run.exit_status == (1 if resolver == "musl" else 0)

    def failed() -> list[Line]:
        return by_type(of_name(watch, run.name))["AAAA"]

    expected = {"glibc": 2, "musl": 1, "go": 2 * servers, "cares": 1}[resolver]
    silent = wait_for_lines(watch, failed, f"AAAA of {run.name}", expected)
    assert {masks(line) for line in silent} == {SILENT}
    assert tries is None or attempts(silent) == tries  # c-ares is content with the one half, and asks no more
    answered = by_type(of_name(watch, run.name))["A"]
    assert answered
    assert {line["Status"] for line in answered} == {"Succeeded"}


# --- failure


@SERVERS
@pytest.mark.parametrize("resolver", ["glibc", "go", "cares"])
def test_servfail_is_asked_again_at_once(runs: Runs, watch: Watch, resolver: str, servers: int):
    run = runs.of(resolver, "servfail", servers)
    assert run.exit_status != 0

    def all_tries() -> list[Line]:
        lines = of_name(watch, run.name)
        done = all(attempts(same) >= 2 * servers for same in by_type(lines).values())
        return lines if done else []

    wait_for_lines(watch, lambda: all_tries()[:1], f"all tries for {run.name}")
    lines = all_tries()
    assert {(*masks(line), line["Rcode"]) for line in lines} == {(*REFUSED_ANSWER, "SERVFAIL")}
    assert spread_seconds(lines) < SOON_SECONDS
    for same in by_type(lines).values():
        assert len(ids(same)) == (2 * servers if resolver == "go" else 1)
        assert resolver != "glibc" or (len(same), attempts(same)) == (servers, 2 * servers)
        assert resolver != "go" or len(ports(same)) == 2 * servers


@SERVERS
def test_servfail_is_asked_again_by_musl_under_one_identity(runs: Runs, watch: Watch, servers: int):
    run = runs.of("musl", "servfail", servers)
    assert run.exit_status != 0
    # One session for what it asks at once, and one for what it asks half a second later.
    lines = wait_for(watch, run.name, 4)
    assert {(*masks(line), line["Rcode"]) for line in lines} == {(*REFUSED_ANSWER, "SERVFAIL")}
    for same in by_type(lines).values():
        assert len(ids(same)) == len(ports(same)) == 1
        assert all(line["Attempts"] > servers for line in same)


# --- truncation


@SERVERS
@pytest.mark.parametrize("resolver", ["glibc", "go", "cares"])
def test_truncation_is_told_and_its_tcp_retry_is_a_session_under_the_same_id(
    runs: Runs, watch: Watch, resolver: str, servers: int
):
    run = runs.of(resolver, "truncated", servers)
    assert run.exit_status == 0
    lines = wait_for(watch, run.name, 4)
    for same in by_type(lines).values():
        (udp,), (tcp,) = over("UDP", same), over("TCP", same)
        assert udp["TransactionId"] == tcp["TransactionId"]
        assert masks(tcp) == ANSWERED
        assert "Truncated" in udp["Findings"]
        assert "Truncated" not in tcp["Findings"]
        # glibc turns to TCP at the first truncated reply: the second may come too late for its socket.
        assert masks(udp) == ANSWERED or udp["Cause"]["Code"] == "LateReply"
    # c-ares asks over the connection it has, or opens a second one if the first is not there yet.
    assert len(ports(over("TCP", lines))) in {"go": {2}, "cares": {1, 2}}.get(resolver, {1})


@SERVERS
def test_musl_is_told_as_truncated_whether_it_turns_to_tcp_or_not(runs: Runs, watch: Watch, servers: int):
    run = runs.of("musl", "truncated", servers)
    by_tcp = run.exit_status == 0  # since 1.2.4
    lines = wait_for(watch, run.name, 4 if by_tcp else 2)
    udp = over("UDP", lines)
    assert len(udp) == 2
    assert all("Truncated" in line["Findings"] and line["Status"] == "Succeeded" for line in udp)
    assert len(over("TCP", lines)) == (2 if by_tcp else 0)


# --- several name servers at once


def test_parallel_name_servers_are_one_session_and_no_fault(runs: Runs, watch: Watch, lab: Lab):
    run = runs.of("musl", "ok", 2)
    assert run.exit_status == 0
    lines = wait_for(watch, run.name, 2)
    assert len(ports(lines)) == 1
    for line in lines:
        assert (line["Status"], line["BitMap"], line["Rcode"]) == ("Succeeded", 3, "NOERROR")
        assert line["Cause"] is None  # the slower reply may find the socket closed: harmless
        assert "ParallelNameservers" in line["Findings"]
        assert "Retransmitted" not in line["Findings"]
        assert Counter(message["type"] for message in line["Messages"])["CLIENT_QUERY"] == 2
        asked = {message["response_address"] for message in line["Messages"] if message["type"] == "STUB_QUERY"}
        assert asked == {server.address for server in lab.servers}


# --- the search list


@pytest.mark.parametrize("resolver", ["glibc", "musl", "go"])
def test_a_search_list_is_one_session_per_name_and_type(lab: Lab, watch: Watch, resolver: str):
    name = new_name("nxdomain")
    command = resolver_command(resolver)
    client = lab.clients[0]
    argv = client.resolver_argv([*command, name], options=f"{OPTIONS} ndots:5", search="one.search two.search")
    assert client.run(argv, check=False).returncode != 0
    lines = wait_for(watch, name, 6)
    assert {(*masks(line), line["Rcode"]) for line in lines} == {(*ANSWERED, "NXDOMAIN")}
    tried = [f"{name}.one.search.", f"{name}.two.search.", f"{name}."]
    for same in by_type(lines).values():
        assert [line["Question"]["Name"] for line in same] == tried
        assert len(ids(same)) == 3


def test_glibc_goes_through_its_search_list_after_servfail_too(lab: Lab, watch: Watch):
    name = new_name("servfail")
    client = lab.clients[0]
    argv = client.resolver_argv(["getent", "ahosts", name], options=OPTIONS, search="one.search")
    assert client.run(argv, check=False).returncode != 0
    lines = wait_for(watch, name, 4)
    assert {(*masks(line), line["Attempts"]) for line in lines} == {(*REFUSED_ANSWER, 2)}
    for same in by_type(lines).values():
        assert [line["Question"]["Name"] for line in same] == [f"{name}.", f"{name}.one.search."]


# --- dig


def test_dig_turns_to_tcp_under_a_new_id(lab: Lab, watch: Watch):
    name = new_name("truncated")
    assert "(TCP)" in lab.clients[0].dig(name).stdout
    lines = wait_for(watch, name, 2)
    (udp,), (tcp,) = over("UDP", lines), over("TCP", lines)
    assert (masks(udp), masks(tcp)) == (ANSWERED, ANSWERED)
    assert udp["TransactionId"] != tcp["TransactionId"]
    assert "Truncated" in udp["Findings"]


def test_dig_keeps_what_it_got_if_told_to_ignore_truncation(lab: Lab, watch: Watch):
    name = new_name("truncated")
    lab.clients[0].dig(name, "A", VIP, "+ignore")
    (line,) = wait_for(watch, name)
    assert (*masks(line), line["Protocol"]) == (*ANSWERED, "UDP")


def test_every_try_of_dig_at_a_silent_server_is_told(lab: Lab, watch: Watch):
    name = new_name("silent")
    lab.clients[0].dig(name, "A", VIP, "+tries=2")

    def all_tries() -> list[Line]:
        lines = of_name(watch, name)
        return lines if attempts(lines) == 2 else []

    lines = wait_for_lines(watch, lambda: all_tries()[:1], "both tries of dig") and all_tries()
    assert {masks(line) for line in lines} == {SILENT}


# --- a scripted client: every combination of id and port


def udp(lab: Lab) -> socket.socket:
    """A socket of the client that talks to the first server, whatever the node would choose."""
    sock = namespaces.udp_socket(lab.clients[0].name, socket.AF_INET)
    sock.settimeout(2)
    sock.connect((lab.servers[0].address, 53))
    return sock


def ask(sock: socket.socket, name: str, rdtype: str, id_: int) -> None:
    message = dns.message.make_query(name, rdtype)
    message.id = id_
    sock.send(message.to_wire())


@pytest.mark.parametrize("word", ["ok", "silent"])
def test_one_id_for_both_families_is_two_sessions(lab: Lab, watch: Watch, word: str):
    name = new_name(word)
    with udp(lab) as sock:
        ask(sock, name, "A", 4242)
        ask(sock, name, "AAAA", 4242)
        if word == "ok":
            assert sock.recv(512)
            assert sock.recv(512)
        lines = wait_for(watch, name, 2)
    assert {line["Question"]["Type"] for line in lines} == {"A", "AAAA"}
    assert {masks(line) for line in lines} == {ANSWERED if word == "ok" else SILENT}
    assert ids(lines) == {4242}
    for line in lines:
        assert line["Attempts"] == 1
        types = {(message.get("query_message") or message["response_message"])["question"]["type"]
                 for message in line["Messages"]}  # fmt: skip
        assert types == {line["Question"]["Type"]}


def test_the_same_id_and_port_again_is_an_attempt_of_the_same_session(lab: Lab, watch: Watch):
    name = new_name("once-lost")
    with udp(lab) as sock:
        ask(sock, name, "A", 4242)
        ask(sock, name, "A", 4242)
        assert sock.recv(512)
        (line,) = wait_for(watch, name)
    assert (*masks(line), line["Attempts"]) == (*ANSWERED, 2)
    assert "Retransmitted" in line["Findings"]


@pytest.mark.parametrize("change", ["id", "port"])
def test_a_retry_with_a_new_id_or_port_is_a_session_of_its_own(lab: Lab, watch: Watch, change: str):
    name = new_name("once-lost")
    with udp(lab) as first, udp(lab) as second:
        ask(first, name, "A", 4242)
        retry = second if change == "port" else first
        ask(retry, name, "A", 4243 if change == "id" else 4242)
        assert retry.recv(512)
        lines = wait_for(watch, name, 2)
    lost, answered = sorted(lines, key=lambda line: line["Time"])
    assert (masks(lost), masks(answered)) == (SILENT, ANSWERED)
    assert attempts(lines) == 2


def test_nothing_was_lost_by_the_capture(watch: Watch):
    assert "records lost by the capture" not in watch.diagnostics()
