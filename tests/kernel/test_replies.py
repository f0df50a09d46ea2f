"""Replies and response codes of real programs: which reply counts, whose error it is, and what no client can use."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import pytest

from agent.lab import Lab, namespaces
from tests.kernel.named import containing, new_name, wait_for, watching
from tests.kernel.test_resolvers import OPTIONS, resolver_command
from tests.lab.scripted import OTHER_NAME, scripted
from tests.lab.servers import coredns, find_program, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Line, Watch

pytestmark = pytest.mark.kernel

NOBODY = "192.0.2.253"
"""Where no packet comes back from: nothing in the lab has it."""
TRIES = 5
ELSEWHERE, ELSEWHERE6 = "10.244.77.77", "fd00:244::77:77"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(servers=2) as lab:
        for address in (f"{ELSEWHERE}/32", f"{ELSEWHERE6}/128"):
            lab.servers[1].run(["ip", "addr", "add", address, "dev", lab.servers[1].interface, "nodad"])
        yield lab


@pytest.fixture(scope="module")
def watch(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:  # noqa: ARG001  built before
    with watching(tmp_path_factory.mktemp("watch"), "--timeout", "1.5") as watch:
        yield watch


def by_musl(lab: Lab, name: str, *nameservers: str) -> int:
    argv = lab.clients[0].resolver_argv(
        [*resolver_command("musl"), f"{name}."], options=OPTIONS, nameserver=nameservers
    )
    return lab.clients[0].run(argv, check=False).returncode


def ask_without_connecting(lab: Lab, name: str, server: str) -> str:
    """Ask as a program does that does not look where replies come from; where this one came from."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespaces.udp_socket(lab.clients[0].name, family) as sock:
        sock.settimeout(2.0)
        sock.sendto(dns.message.make_query(name, "A").to_wire(), (server, 53))
        return str(sock.recvfrom(512)[1][0])


def ask_twice(lab: Lab, name: str, server: str) -> int:
    """Ask as glibc does, again from the same socket after a while; the response code of the reply."""
    query = dns.message.make_query(name, "A").to_wire()
    with lab.clients[0].udp_socket(server) as sock:
        sock.settimeout(3.0)
        sock.send(query)
        with contextlib.suppress(TimeoutError):
            return dns.message.from_wire(sock.recv(512)).rcode()
        sock.settimeout(9.0)
        sock.send(query)
        return dns.message.from_wire(sock.recv(512)).rcode()


def test_musl_takes_the_answer_that_follows_a_servfail(lab: Lab, watch: Watch):
    name = new_name("once-servfail")
    with scripted(lab.servers[0]):
        assert by_musl(lab, name, lab.servers[0].address) == 0
    for line in wait_for(watch, name, 2):
        assert (line["Status"], line["Rcode"], line["Attempts"]) == ("Succeeded", "NOERROR", 2)
        assert line["Cause"]["Code"] == "ServerError"
        assert "SERVFAIL" in line["Cause"]["Message"]
        assert line["Server"]["Address"] == lab.servers[0].address


def test_of_servers_that_contradict_each_other_the_line_names_the_one_that_counts(lab: Lab, watch: Watch):
    one, other = lab.servers
    with scripted(one), scripted(other, always="nxdomain"):
        for line in asked_of_both(lab, watch, one.address, other.address):
            assert (line["Status"], line["Rcode"], line["Cause"]) == ("Succeeded", "NXDOMAIN", None)
            assert line["Server"]["Address"] == other.address
            remark = next(words for words in line["Remarks"] if words.startswith("ServersDisagree"))
            assert f"{one.address}:53 answered NOERROR" in remark


def asked_of_both(lab: Lab, watch: Watch, *nameservers: str) -> list[Line]:
    """Two lines that know both answers: on a busy machine the second one comes after the lookup is over, at times."""
    for _ in range(TRIES):
        name = new_name("late-20")
        assert by_musl(lab, name, *nameservers) != 0
        lines = wait_for(watch, name, 2)
        if all("ServersDisagree" in line["Findings"] for line in lines):
            return lines
    pytest.fail(f"{TRIES} times at least one line said nothing of the other answer: {lines[0]}")


def test_of_servers_asked_at_once_the_good_reply_counts_although_an_error_came_first(lab: Lab, watch: Watch):
    name = new_name("late-300")
    one, other = lab.servers
    with scripted(one), scripted(other, always="servfail"):
        assert by_musl(lab, name, one.address, other.address) == 0
    for line in wait_for(watch, name, 2):
        assert (line["Status"], line["Rcode"]) == ("Succeeded", "NOERROR")
        assert line["Server"]["Address"] == one.address


def test_what_dnsmasq_refuses_beyond_its_limit_is_its_own_error(lab: Lab, watch: Watch):
    server = lab.servers[0]
    limited = ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--dns-forward-max=1", f"--server={NOBODY}"]
    limited += [f"--listen-address={server.address},{server.address6}"]
    name = new_name("limit")
    # What was asked to see that it is there waits for an answer for ever, and nothing else fits.
    with serving(server, limited):
        assert "REFUSED" in lab.clients[0].dig(name, "A", server.address).stdout
    (refused,) = wait_for(watch, name)
    cause = refused["Cause"]
    assert (refused["Status"], cause["Code"], cause["Confidence"]) == ("Failed", "ServerError", "medium")
    assert "the server was not seen to ask another server on a DNS port" in cause["Evidence"]
    assert "RA=1" in cause["Evidence"][0]


@pytest.mark.skipif(find_program("coredns") is None, reason="coredns is missing: make oracles")
def test_an_error_of_coredns_that_came_of_a_silent_upstream_is_never_nothing_came_back(lab: Lab, watch: Watch):
    name = new_name("coredns")
    with coredns(lab.servers[0], f"cluster.local {{\n errors\n}}\n. {{\n forward . {NOBODY}\n}}\n"):
        assert ask_twice(lab, name, lab.servers[0].address) == dns.rcode.SERVFAIL
    (line,) = wait_for(watch, name)
    assert (line["Status"], line["Rcode"], line["Attempts"]) == ("Failed", "SERVFAIL", 2)
    # This node itself may find no way to the upstream.
    assert line["Cause"]["Code"] in {"UpstreamTimeout", "NoRoute", "NeighbourFailure"}
    assert "no reply came back" not in line["Cause"]["Message"]


@pytest.mark.parametrize(
    ("word", "code"),
    [("garbled", "MalformedReply"), ("other-id", "MismatchedReply"), ("other-question", "MismatchedReply")],
)
@pytest.mark.parametrize("v6", [False, True])
def test_a_reply_that_no_client_can_use_is_told_with_its_lookup(lab: Lab, watch: Watch, word: str, code: str, v6: bool):  # noqa: FBT001
    name = new_name(word)
    server = lab.servers[0]
    with scripted(server):
        lab.clients[0].dig(name, "A", server.address6 if v6 else server.address)
    (line,) = wait_for(watch, name)
    assert (line["Status"], line["Rcode"], line["Cause"]["Code"]) == ("Failed", None, code)
    assert [message["type"] for message in line["Messages"]] == [
        "STUB_QUERY",
        "CLIENT_QUERY",
        "CLIENT_RESPONSE",
        "STUB_RESPONSE",
    ]
    assert not containing(watch, f'"Question":{{"Name":"{OTHER_NAME}"')


@pytest.mark.parametrize("v6", [False, True])
def test_a_reply_from_another_address_of_the_server_is_unexpected(lab: Lab, watch: Watch, v6: bool):  # noqa: FBT001
    name = new_name("elsewhere")
    server = lab.servers[1]
    asked, other = (server.address6, ELSEWHERE6) if v6 else (server.address, ELSEWHERE)
    with scripted(server, server.address, server.address6, ELSEWHERE, ELSEWHERE6):
        assert ask_without_connecting(lab, name, asked) == other
    (line,) = wait_for(watch, name)
    assert line["Status"] == "Failed"
    assert (line["Cause"]["Code"], line["Cause"]["Confidence"]) == ("UnexpectedSource", "medium")
    assert other in line["Cause"]["Message"]
