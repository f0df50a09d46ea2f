"""agent.serve: the agent's port, as Prometheus, a kubelet and somebody who means harm find it."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.export.metrics.pages import PLAIN, Page, Pages
from agent.export.metrics.sources import Sources, Traffic
from agent.serve import READS, Address, BadRequestError, Limits, Request, ServeError, Server, address, listen, parse

LOOPBACK = Address("127.0.0.1", 0)
PATIENCE_SECONDS = 10.0
LARGE = Page(200, PLAIN, b"x" * (8 << 20))
SCRAPE = Page(200, PLAIN, bytes(range(256)) * 400)
FAST = Limits(connections_a_second=1000, seconds=PATIENCE_SECONDS)


def pages():
    return {
        "/": lambda _accept: Page(200, PLAIN, b"hello\n"),
        "/large": lambda _accept: LARGE,
        "/scrape": lambda _accept: SCRAPE,
    }


@contextlib.contextmanager
def serving(limits: Limits = FAST, contents=None) -> Iterator[tuple[Server, Traffic]]:
    traffic = Traffic()
    with Server(LOOPBACK, contents or pages(), traffic, limits) as server:
        yield server, traffic


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.address.host, server.address.port), PATIENCE_SECONDS)


def talk(server: Server, data: bytes) -> bytes:
    """Send this, and read until the server has closed."""
    with connect(server) as client, contextlib.suppress(ConnectionError):
        client.sendall(data)
        return read_all(client)
    return b""


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    client = http.client.HTTPConnection(server.address.host, server.address.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(client):
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# Where to listen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":9353", Address("", 9353)),
        ("192.0.2.1:9353", Address("192.0.2.1", 9353)),
        ("[2001:db8::1]:80", Address("2001:db8::1", 80)),
        # $(NODE_IP):9353 in a manifest, on a node with IPv6
        ("2001:db8::1:9353", Address("2001:db8::1", 9353)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("none", None),
    ],
)
def test_an_address_is_read_in_every_usual_spelling(text, expected):
    assert address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "9353", "localhost:9353", ":65536", ":-1", ":dns", "192.0.2.1", "::", "[::1]", ":٣", "1.2.3:80", "a b:1"],
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=":9353"):
        address(text)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_without_an_address_both_families_are_served(family):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with Server(Address("", 0), pages(), Traffic(), FAST) as server, socket.socket(family) as client:
        client.settimeout(PATIENCE_SECONDS)
        client.connect((host, server.address.port))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_all(client).endswith(b"hello\n")


def test_one_address_is_served_alone():
    with serving() as (server, _), socket.socket() as other:
        other.settimeout(PATIENCE_SECONDS)
        with pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", server.address.port))


def test_a_port_in_use_is_one_clear_error():
    with serving() as (server, _), pytest.raises(ServeError) as refused:
        listen(server.address)
    said = str(refused.value)
    assert said.startswith(f"cannot listen on 127.0.0.1:{server.address.port}: the port is in use")
    assert "another dnstrail" in said
    assert "--metrics-address" in said
    assert "\n" not in said


def test_the_port_on_all_addresses_is_in_use_when_it_is_on_one():
    with serving() as (server, _), pytest.raises(ServeError, match="in use"):
        listen(Address("", server.address.port))


def test_an_address_of_another_host_is_one_clear_error():
    with pytest.raises(ServeError, match="no device of this host has that address"):
        listen(Address("192.0.2.1", 0))


def test_the_port_is_free_at_once_for_the_next_agent():
    with serving() as (server, _):
        assert get(server, "/")[0] == 200
        taken = server.address
    with Server(taken, pages(), Traffic(), FAST) as next_one:
        assert get(next_one, "/")[0] == 200


# What is answered


def test_a_page_is_answered_with_what_it_is_and_how_long():
    with serving() as (server, traffic):
        status, headers, body = get(server, "/?with=query")
        assert (status, body) == (200, b"hello\n")
        assert headers["Content-Type"] == PLAIN
        assert headers["Content-Length"] == "6"
        assert headers["Connection"] == "close"
        until(lambda: traffic.answered == {200: 1})


def test_head_is_answered_without_the_body():
    with serving() as (server, _):
        status, headers, body = get(server, "/large", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(LARGE.body)), b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"])
def test_other_methods_are_refused_whatever_they_bring(method):
    with serving() as (server, _):
        answer = talk(server, f"{method} / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n".encode() + b"b" * 60000)
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//", "/../etc/passwd", "/%2e%2e/etc/passwd", "/metrics%00"])
def test_there_is_nothing_else(path):
    with serving() as (server, _):
        assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\xff" * 9000,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: " + b"c" * 9000,
    ],
)
def test_what_is_no_request_is_refused(data):
    with serving() as (server, _):
        assert talk(server, data).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda some: b"GET / HTTP/1.1\r\n" + some + b"\r\n\r\n"))
def test_any_bytes_are_a_request_or_none(data):
    try:
        request = parse(data)
    except BadRequestError:
        return
    assert isinstance(request, Request)
    assert request.path.startswith("/")


def test_the_header_that_chooses_the_format_is_read_in_any_spelling():
    data = b"GET /metrics?name[]=up HTTP/1.1\r\nhost: a\r\naCCept:text/plain \r\nACCEPT: */*\r\n\r\n"
    assert parse(data) == Request("GET", "/metrics", "text/plain,*/*", "name[]=up", "a")


def test_a_request_that_comes_in_pieces_is_understood():
    with serving() as (server, _), connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"GE", b"T / HT", b"TP/1.1\r\nHo", b"st: a\r\n\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.01)
        assert read_all(client).endswith(b"hello\n")


def test_a_page_that_fails_takes_nothing_else_with_it(capfd):
    def fail(_accept) -> Page:
        raise KeyError("gone")

    with serving(contents=pages() | {"/broken": fail}) as (server, _):
        assert get(server, "/broken")[0] == 500
        assert get(server, "/")[0] == 200
    assert capfd.readouterr().err == "dnstrail: /broken: KeyError: 'gone'\n"


def test_a_scrape_arrives_whole_at_a_slow_reader():
    with serving() as (server, _), connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /scrape HTTP/1.1\r\n\r\n")
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == SCRAPE.body


# Those who mean harm


def test_a_client_that_says_nothing_is_sent_away():
    with serving(FAST._replace(seconds=0.2)) as (server, traffic), connect(server) as client:
        assert client.recv(1) == b""
        until(lambda: traffic.answered == {408: 1})


def test_a_client_that_does_not_read_is_sent_away():
    with serving(FAST._replace(seconds=0.3)) as (server, traffic), connect(server) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        until(lambda: 408 in traffic.answered)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(client)) < len(LARGE.body)


def test_a_client_that_sends_byte_by_byte_is_not_heard_out():
    with serving() as (server, _), connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = 0
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /" + b"a" * 200:
                client.sendall(bytes((byte,)))
                sent += 1
                time.sleep(0.005)
        assert sent >= READS
        with contextlib.suppress(ConnectionError):
            assert read_all(client).startswith(b"HTTP/1.1 400 ")


def test_whoever_occupies_all_connections_is_pushed_out_by_honest_clients():
    limits = FAST._replace(connections=8)
    with serving(limits) as (server, traffic), contextlib.ExitStack() as idle:
        crowd = [idle.enter_context(connect(server)) for _ in range(40)]
        for _ in range(5):
            assert get(server, "/")[0] == 200
        assert traffic.refused >= 40 - 8
        assert crowd[0].recv(1) == b""


def test_no_more_clients_a_second_are_served_than_allowed():
    with serving(Limits(connections_a_second=20)) as (server, traffic):
        stop = threading.Event()

        def knock() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    talk(server, b"GET / HTTP/1.1\r\n\r\n")

        crowd = [threading.Thread(target=knock) for _ in range(4)]
        begun = time.monotonic()
        for one in crowd:
            one.start()
        until(lambda: traffic.answered.get(200, 0) >= 20)
        took = time.monotonic() - begun
        stop.set()
        for one in crowd:
            one.join()
    # 20 of them at 20 a second; the first one is served at once.
    assert took > 19 / 20


def test_a_client_that_resets_its_connection_disturbs_nobody():
    with serving() as (server, _):
        for data in (b"", b"GET /large HTTP/1.1\r\n\r\n"):
            with connect(server) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                client.sendall(data)
        assert get(server, "/")[0] == 200


def test_running_out_of_descriptors_is_survived():
    # In a process of its own: the limit is the process's.
    script = """
import json, resource, socket, sys, time
from agent.export.metrics.pages import PLAIN, Page
from agent.export.metrics.sources import Traffic
from agent.serve import Address, Limits, Server
traffic = Traffic()
page = lambda _accept: Page(200, PLAIN, b"hello")
with Server(Address("127.0.0.1", 0), {"/": page}, traffic, Limits(connections_a_second=1000)) as server:
    where = (server.address.host, server.address.port)
    def ask():
        with socket.create_connection(where, 10) as client:
            client.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(4096):
                answer += part
            return answer[-5:].decode()
    before = ask()
    client = socket.create_connection(where, 10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    time.sleep(0.3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    client.close()
    print(json.dumps([before, ask()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == ["hello", "hello"]
    assert done.stderr == ""


@pytest.mark.parametrize("busy", [False, True])
def test_stopping_takes_no_longer_than_it_has_to(busy):
    with contextlib.ExitStack() as clients:
        with serving(FAST._replace(seconds=60)) as (server, _):
            if busy:
                silent = clients.enter_context(connect(server))
                greedy = clients.enter_context(connect(server))
                greedy.sendall(b"GET /large HTTP/1.1\r\n\r\n")
                assert greedy.recv(1) == b"H"
                del silent
            begun = time.monotonic()
            server.stop()
            assert time.monotonic() - begun < 0.9
        assert not server._thread.is_alive()


def test_a_port_that_was_never_served_is_closed_all_the_same():
    server = Server(LOOPBACK, pages(), Traffic(), FAST)
    server.stop()
    listen(server.address).close()


def test_signals_stay_with_the_main_thread():
    script = """
import os, signal, threading, time
from agent.export.metrics.sources import Traffic
from agent.serve import Address, Server
with Server(Address("127.0.0.1", 0), {}, Traffic()) as server:
    (blocked,) = [line for line in open(f"/proc/self/task/{server._thread.native_id}/status") if "SigBlk" in line]
    mask = int(blocked.split()[1], 16)
    print(all(mask >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "True\n"


# What is not known yet


def test_a_client_that_asks_too_early_gets_its_answer_when_there_is_one():
    answers = iter([None, None, Page(200, PLAIN, b"at last\n")])
    with serving(contents={"/": lambda _accept: next(answers)}) as (server, traffic):
        assert get(server, "/")[2] == b"at last\n"
        assert traffic.answered == {200: 1}


def test_the_time_that_it_is_too_early_is_not_the_clients():
    with serving(Limits(seconds=0.25), {"/": too_early_until(time.monotonic() + 0.6)}) as (server, traffic):
        assert get(server, "/")[0] == 200
        assert traffic.answered == {200: 1}


def test_a_server_stops_while_a_client_waits_for_an_answer():
    asked = threading.Event()
    with serving(contents={"/": lambda _accept: asked.set()}) as (server, traffic), connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert asked.wait(PATIENCE_SECONDS)
        server.stop()
        assert read_all(client) == b""
        assert traffic.answered == {}


def too_early_until(moment: float):
    return lambda _accept: Page(200, PLAIN, b"") if time.monotonic() > moment else None


# The agent's own pages


def test_the_pages_of_the_agent_are_where_probes_and_prometheus_look_for_them():
    sources = Sources()
    with Server(LOOPBACK, Pages(sources).by_path, sources.traffic, FAST) as server:
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/readyz")[0] == 503
        status, headers, body = get(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
        assert (status, body[-6:]) == (200, b"# EOF\n")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        status, headers, body = get(server, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"not attached yet" in body
        assert headers["Content-Security-Policy"] == "default-src 'none'"
