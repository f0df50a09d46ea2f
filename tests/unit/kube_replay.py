"""A small HTTP server that replays, over real connections, what a real API server once answered.

The API server itself is in tests/cluster. This is for order, time and faults, which a real one cannot be told.
"""

import json
import socket
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

from agent.enrich.kube.access import Kubeconfig
from agent.enrich.kube.watch import Timing

RECORDED = Path(__file__).parents[1] / "fixtures/kube-api"
PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
STATEFUL_SETS = "/apis/apps/v1/statefulsets"
JOB = "/apis/batch/v1/namespaces/shop/jobs/backup-29384756"
LISTS = {
    PODS: "pods.json",
    SERVICES: "services.json",
    SLICES: "endpointslices.json",
    STATEFUL_SETS: "statefulsets.json",
    JOB: "job-metadata.json",
}
BOUND_SECONDS = 10.0
QUICK = Timing(
    read_seconds=5,
    page_seconds=5,
    watch_seconds=30,
    silence_seconds=5,
    settled_seconds=0.01,
    first_wait_seconds=0.01,
    longest_wait_seconds=0.05,
)
EVENTS = (RECORDED / "pods-watch.jsonl").read_bytes().splitlines()
"""A pod is created, gets its status, is deleted; then a bookmark."""


def recorded(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


@dataclass
class Answer:
    """One answer; a watch stays open until the server closes, unless it is to end."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ends: bool = True
    cut: bool = False
    """The connection breaks in the middle of the body."""
    pause_seconds: float = 0.0
    """Before each line of the body."""


@dataclass
class Request:
    """What was asked."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    method: str = "GET"
    body: bytes = b""

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


class Replay(ThreadingHTTPServer):
    """Answers in the order in which they were put in; then lists are repeated and watches stay silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.lists: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self.watches: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self.writes: defaultdict[str, deque[Answer]] = defaultdict(deque)
        """By method; a success when there is none."""
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nothing to complain about."""

    def of(self, *, watch: bool, path: str = PODS) -> list[Request]:
        return [one for one in self.requests if one.is_watch == watch and one.path == path]

    def answer(self, request: Request) -> Answer:
        if request.method != "GET":
            waiting = self.writes[request.method]
            return waiting.popleft() if waiting else Answer(b"{}", status=201 if request.method == "POST" else 200)
        waiting = (self.watches if request.is_watch else self.lists)[request.path]
        if request.is_watch:
            return waiting.popleft() if waiting else Answer(ends=False)
        return waiting.popleft() if len(waiting) > 1 else waiting[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replay
    disable_nagle_algorithm: ClassVar[bool] = True

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(parts.path, query, dict(self.headers), self.command, body)
        self.server.requests.append(request)
        answer = self.server.answer(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in answer.body.splitlines(keepends=True) if request.is_watch else [answer.body]:
            self.server.closing.wait(answer.pause_seconds)
            self._chunk(line)
        if answer.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif answer.ends:
            self._chunk(b"")
        else:
            self.server.closing.wait(BOUND_SECONDS * 3)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


@contextmanager
def replaying(tls: ssl.SSLContext | None = None) -> Iterator[Replay]:
    """Serve lists of everything that was recorded while the block lasts; over TLS if its context is given."""
    with Replay() as replay:
        if tls is not None:
            # The handshake is made by the thread of each connection.
            replay.socket = tls.wrap_socket(replay.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=replay.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        for path, name in LISTS.items():
            replay.lists[path].append(Answer(recorded(name)))
        yield replay
        replay.closing.set()
        replay.shutdown()
        thread.join(BOUND_SECONDS)


def kubeconfig(directory: Path, url: str, token: str = "first") -> Kubeconfig:  # noqa: S107  no secret
    (directory / "token").write_text(token)
    content = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"tokenFile": str(directory / "token")}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (directory / "kubeconfig").write_text(json.dumps(content))
    return Kubeconfig(directory / "kubeconfig")
