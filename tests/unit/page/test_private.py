"""The page's answers over the agent's port: for whom they are, what they cost, and what else they leave alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import AsyncGenerator, Iterator

import pytest

from agent.export.metrics.pages import PLAIN, Page, Pages
from agent.page.pages import ASKED_A_SECOND, ASSETS, MAX_ROWS, POLICY, files
from agent.serve import Address, Limits, Private, Request, Server, Stream, why_not_private
from tests.page.night import CART, Night

PATIENCE_SECONDS = 10.0
LOOPBACK = Address("127.0.0.1", 0)
QUICK = Limits(connections=8, connections_a_second=1000, seconds=0.5)
LARGE = b"x" * (4 << 20)


@contextlib.contextmanager
def serving(
    night: Night | None = None, limits: Limits = QUICK, where: Address = LOOPBACK, **private: float
) -> Iterator[Server]:
    night = night or Night()
    pages = Private(night.pages().by_path, **private)  # type: ignore[arg-type]
    with Server(where, Pages(night.sources).by_path, night.sources.traffic, limits, pages) as server:
        yield server


def get(
    server: Server, path: str, method: str = "GET", host: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    client = http.client.HTTPConnection(host, server.address.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(client):
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def follow(server: Server, path: str = "/page/events") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.address.port), PATIENCE_SECONDS)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# For whom


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:9353", "[::1]", "[::1]:9353"])
def test_the_page_is_asked_for_by_the_names_of_this_host(host: str):
    assert why_not_private(Request("GET", "/", "", "", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:9353", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.2"),
        *(
            "[::2]",
            "localhost:",
            "localhost:1,evil.example",
            "localhost evil",
            "::1",
            "localhost:123456",
            "localhost\n",
        ),
    ],
)
def test_a_name_that_somebody_pointed_at_this_host_gets_nothing(host: str):
    assert why_not_private(Request("GET", "/", "", "", host)) is not None


def test_dns_rebinding_is_refused_over_the_wire_and_metrics_go_on():
    with serving() as server:
        for path in ("/", "/page/main.js", "/page/state", "/page/events", "/page/lookups"):
            status, _, body = get(server, path, Host="evil.example")
            assert status == 403
            assert b"localhost" in body
        assert get(server, "/metrics", Host="evil.example")[0] == 200


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_get_nothing(site: str, status: int):
    with serving() as server:
        assert get(server, "/page/state", **{"Sec-Fetch-Site": site})[0] == status


def own_address() -> str | None:
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return None


def test_on_the_nodes_own_address_there_are_metrics_and_no_page():
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but loopback")
    with serving(where=Address("", 0)) as server:
        status, _, body = get(server, "/page/state", host=host, Host="localhost")
        assert (status, b"loopback only" in body) == (403, True)
        assert get(server, "/page/lookups", host=host, Host="localhost")[0] == 403
        assert b"Watches every DNS message" in get(server, "/", host=host)[2]
        assert get(server, "/metrics", host=host)[0] == 200
        for here in ("127.0.0.1", "::1"):
            assert get(server, "/page/state", host=here)[0] == 200


def test_without_the_option_there_is_no_page():
    night = Night()
    with Server(LOOPBACK, Pages(night.sources).by_path, night.sources.traffic, QUICK) as server:
        assert b"Watches every DNS message" in get(server, "/")[2]
        for path in ("/page/state", "/page/events", "/page/lookups", "/page/main.js"):
            assert get(server, path)[0] == 404


# What is answered


def test_every_file_of_the_page_is_served_with_a_strict_policy():
    with serving() as server:
        for path in files():
            status, headers, body = get(server, "/" if path.suffix == ".html" else f"/page/{path.name}")
            assert (status, body) == (200, path.read_bytes())
            assert headers["Content-Security-Policy"] == POLICY
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_no_file_of_the_page_has_an_address_of_elsewhere_or_a_script_or_style_in_its_markup():
    for path in ASSETS.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path
        assert "innerHTML" not in text, path
        assert path.suffix != ".html" or (" style=" not in text and " onclick=" not in text)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(method: str):
    with serving() as server:
        for path in ("/", "/page/state", "/page/events"):
            status, headers, _ = get(server, path, method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_answered_without_a_body_also_for_a_stream():
    with serving() as server:
        for path in ("/", "/page/state", "/page/events"):
            status, _, body = get(server, path, "HEAD")
            assert (status, body) == (200, b"")


@pytest.mark.parametrize("query", ["before=x", "before=-1", "before=1e3", "before=%D9%A3", "before=" + "9" * 99])
def test_what_is_no_number_is_answered_with_one_sentence(query: str):
    with serving() as server:
        status, _, body = get(server, f"/page/lookups?{query}")
        assert (status, body) == (400, b"before is a whole number\n")


def test_a_problem_that_is_not_kept_any_more_is_not_found():
    with serving() as server:
        for query in ("serial=7", "serial=", ""):
            status, _, body = get(server, f"/page/lookup?{query}")
            assert (status, b"not kept any more" in body) == (404, True)


def test_problems_come_in_bounded_parts_the_newest_first():
    night = Night()
    night.fill(night.line("n.example."), MAX_ROWS + 10)
    with serving(night) as server:
        first = json.loads(get(server, "/page/lookups")[2])
        rest = json.loads(get(server, f"/page/lookups?before={first[-1]['Serial']}")[2])
    assert (len(first), len(rest)) == (MAX_ROWS, 10)
    assert [row["Serial"] for row in (*first, *rest)] == list(range(MAX_ROWS + 10, 0, -1))


def test_nobody_makes_the_agent_busy_by_asking_for_problems():
    night = Night()
    night.forbidden(CART, "n.example.")
    with serving(night) as server:
        statuses = [get(server, path)[0] for path in ("/page/lookups", "/page/lookup?serial=1") * (2 * ASKED_A_SECOND)]
        assert get(server, "/healthz")[0] in (200, 503)
    assert statuses[0] == 200
    assert statuses.count(503) >= ASKED_A_SECOND


def test_whoever_asks_again_within_a_second_gets_the_same_state():
    night = Night()
    with serving(night) as server:
        before = get(server, "/page/state")[2]
        night.forbidden(CART, "n.example.")
        assert get(server, "/page/state")[2] == before
        night.pass_by(1)
        assert get(server, "/page/state")[2] != before


# Streams


def test_a_stream_brings_the_state_again_and_again():
    with serving() as server, follow(server) as client:
        text = b""
        while text.count(b"event: state\n") < 2:
            text += client.recv(1 << 16)
    head, _, events = text.partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head
    assert b"Content-Length" not in head
    assert events.startswith(b"retry: ")
    data = events.split(b"data: ")[1].partition(b"\n\n")[0]
    assert json.loads(data)["Node"] == "node-a"


def test_streams_are_bounded_and_a_place_that_is_free_again_is_given():
    with serving(streams=2) as server, follow(server) as one, follow(server) as other:
        for client in (one, other):
            assert b"200 OK" in client.recv(1 << 16)
        status, _, body = get(server, "/page/events")
        assert (status, b"2 are looking" in body) == (503, True)
        one.close()
        until(lambda: len(server._streams) < 2)
        with follow(server) as third:
            assert b"200 OK" in third.recv(1 << 16)


def test_a_stream_ends_after_a_while_and_is_asked_for_anew():
    with serving(stream_seconds=0.0) as server, follow(server) as client:
        text = b""
        while part := client.recv(1 << 16):
            text += part
    assert text.endswith(b"\n\n")


async def flood() -> AsyncGenerator[bytes, None]:
    while True:
        yield LARGE


def test_a_reader_that_does_not_read_is_cut_off_and_nobody_waits_for_it():
    night = Night()
    pages = Private({"/flood": lambda _request: Stream(200, PLAIN, flood)}, streams=4)
    with (
        Server(LOOPBACK, Pages(night.sources).by_path, night.sources.traffic, QUICK, pages) as server,
        follow(server, "/flood"),
    ):
        until(lambda: server._streams)
        begun = time.monotonic()
        assert get(server, "/readyz")[0] in (200, 503)
        assert time.monotonic() - begun < 0.4
        until(lambda: not server._streams)
    assert night.sources.traffic.answered[408] == 1


def test_probes_get_through_however_many_streams_and_idle_connections_there_are():
    with serving(streams=8) as server, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(follow(server)).recv(1 << 16)
        for _ in range(3):
            assert get(server, "/healthz")[0] in (200, 503)
        until(lambda: len(server._streams) < 8)


def test_a_stream_that_fails_takes_nothing_with_it():
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise RuntimeError("made to fail")

    night = Night()
    pages = Private({"/broken": lambda _request: Stream(200, PLAIN, broken)})
    with Server(LOOPBACK, {"/": lambda _: Page(200, PLAIN, b"ok")}, night.sources.traffic, QUICK, pages) as server:
        with follow(server, "/broken") as client, contextlib.suppress(ConnectionError):
            while client.recv(1 << 16):
                pass
        until(lambda: not server._streams)
        assert get(server, "/")[2] == b"ok"


def test_the_server_stops_at_once_while_streams_are_open():
    with serving() as server, follow(server) as client:
        client.recv(1 << 16)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 0.9
