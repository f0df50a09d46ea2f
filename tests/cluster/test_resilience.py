"""Whatever becomes of the API server, sessions are printed all the time, and names come back with it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path

import pytest

from agent.lab import Lab, drop_queries, wait_until
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import (
    ACCOUNT,
    LINE_SECONDS,
    NAMESPACE,
    Container,
    Dnstrail,
    Node,
    agents_kubeconfig,
    cart,
    furnish,
    running,
    serve_dns,
)
from tests.cluster.rest import ApiError
from tests.kernel.conftest import Line
from tests.kernel.test_lifecycle import EXIT_SECONDS, ask_in_vain, stop, sums

pytestmark = pytest.mark.kernel

FORGIVEN_SECONDS = 60
"""So long after its expiry the API server takes a token."""
GOOD_SECONDS = 12.0
"""So long the token is taken that will expire."""
BACK_SECONDS = 40.0
"""The longest pause between two attempts is 30 s."""
PROMPT_SECONDS = 5.0
"""Until a line is there, on a machine on which other things go on."""
PAUSE_SECONDS = 0.05
UNANSWERED = 2003


class Steady(threading.Thread):
    """A pod that looks something up again and again; each lookup has to get its line, soon."""

    def __init__(self, node: Node, client: Container) -> None:
        super().__init__(daemon=True)
        self.asked: list[tuple[str, float]] = []
        self._node = node
        self._client = client
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            name = self._node.name("steady")
            self._client.program.ask(name)
            self.asked.append((name, time.monotonic()))

    def end(self) -> None:
        """Ask nothing more."""
        self._over.set()
        self.join(LINE_SECONDS)

    def check(self) -> list[Line]:
        """Wait for the lines of what was asked so far: they are there at once."""
        asked = list(self.asked)
        begun = time.monotonic()
        lines = [self._node.line(name) for name, _ in asked]
        assert time.monotonic() - begun < PROMPT_SECONDS
        assert all(line["Status"] == "Succeeded" for line in lines)
        return lines


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("nftables", clients=3) as built:
        yield built


@pytest.fixture(scope="module")
def dnstrail(_running_control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnstrail]:
    """One that lives through all of this."""
    with running(_running_control_plane, tmp_path_factory.mktemp("dnstrail")) as started:
        yield started


@pytest.fixture
def node(lab: Lab, control_plane: ControlPlane, dnstrail: Dnstrail) -> Iterator[Node]:
    with Node(lab, control_plane, dnstrail) as made:
        control_plane.apply([manifests.node()])
        serve_dns(made, control_plane)
        yield made


@pytest.fixture
def steady(node: Node) -> Iterator[Steady]:
    """A pod that is known and asks all the time."""
    client = node.run_pod(node.lab.clients[0], cart(node.lab.clients[0], "steady-1"))
    node.ask_until_known(client)
    with asking(node, client) as started:
        yield started


@contextlib.contextmanager
def asking(node: Node, client: Container) -> Iterator[Steady]:
    started = Steady(node, client)
    started.start()
    try:
        yield started
    finally:
        started.end()


def assert_that_names_come(node: Node, name: str) -> None:
    """A pod that is made now gets its name."""
    place = node.lab.clients[1]
    pod = node.run_pod(place, cart(place, name))
    line = node.ask_until_known(pod, BACK_SECONDS)
    assert (line["Client"]["Pod"], line["Client"]["Workload"]) == (name, "Deployment/cart")


def assert_that_all_were_named(steady: Steady) -> None:
    lines = steady.check()
    assert {(line["Client"]["Pod"], line["Server"]["Service"]) for line in lines} == {
        ("steady-1", "kube-system/kube-dns")
    }
    assert {line["Server"]["Pod"] for line in lines} == {"coredns-0"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["upgrade", "crash"])
def test_a_restart_of_the_api_server_costs_no_name(
    node: Node, steady: Steady, control_plane: ControlPlane, how: signal.Signals
):
    control_plane.stop(how)
    steady.check()
    control_plane.start()

    assert_that_names_come(node, "after-restart")
    assert_that_all_were_named(steady)


def test_what_changed_while_nobody_could_tell_is_learnt_by_a_new_list(
    node: Node, steady: Steady, control_plane: ControlPlane
):
    place = node.lab.clients[1]
    before = node.run_pod(place, cart(place, "before"))
    node.ask_until_known(before)

    with control_plane.away() as elsewhere:
        elsewhere.delete(before.held)
        node.kill(before)
        steady.check()

    # Its version is compacted away: to go on from there is 410 Gone.
    assert_that_names_come(node, "after-410")
    assert_that_all_were_named(steady)


def test_an_api_server_that_hangs_keeps_nobody(node: Node, steady: Steady, control_plane: ControlPlane):
    control_plane.hang()
    asked = len(steady.asked)
    wait_until(lambda: len(steady.asked) > asked + 40, "lookups while it hangs", seconds=LINE_SECONDS)
    place = node.lab.clients[1]
    nameless = node.start(
        place, {"metadata": {"uid": "00000000-0000-4000-8000-000000000000", "name": "unknown"}}, "e" * 64
    )
    line = node.ask(nameless)
    assert (line["Client"]["Pod"], line["Client"]["Container"]) == (None, "e" * 12)
    assert line["Server"]["Service"] == "kube-system/kube-dns"
    node.kill(nameless)
    control_plane.resume()

    assert_that_names_come(node, "after-hanging")
    assert_that_all_were_named(steady)


@pytest.mark.parametrize("known", [True, False], ids=["in the middle", "from the start"])
def test_sigterm_ends_it_within_two_seconds_while_the_api_server_hangs(
    lab: Lab, control_plane: ControlPlane, tmp_path: Path, *, known: bool
):
    kubeconfig = agents_kubeconfig(control_plane)
    if not known:
        control_plane.hang()
    with (
        running(control_plane, tmp_path, kubeconfig=kubeconfig) as dnstrail,
        Node(lab, control_plane, dnstrail) as node,
    ):
        if known:
            serve_dns(node, control_plane)
            place = lab.clients[0]
            node.ask_until_known(node.run_pod(place, cart(place)))
            control_plane.hang()
        hangs = partial(is_connected, dnstrail.process.pid, control_plane.port)
        wait_until(hangs, "a connection that nobody answers", seconds=LINE_SECONDS)
        with drop_queries(lab):
            ask_in_vain(lab, UNANSWERED)
            assert stop(dnstrail.process) < EXIT_SECONDS
    assert sums(dnstrail.diagnostics()).sessions >= UNANSWERED


def is_connected(pid: int, port: int) -> bool:
    """Whether this process has an open connection to that port of this machine."""
    command = ["ss", "-Htnp", "state", "established", "dport", "=", f":{port}"]
    return f"pid={pid}," in subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def test_a_token_that_has_expired_is_replaced_by_the_one_that_came_in_its_place(
    lab: Lab, control_plane: ControlPlane, tmp_path: Path
):
    furnish(control_plane)
    token = tmp_path / "token"
    token.write_text(control_plane.token_for(NAMESPACE, ACCOUNT, GOOD_SECONDS - FORGIVEN_SECONDS))
    kubeconfig = control_plane.write_kubeconfig("by-file", {"tokenFile": str(token)})
    with (
        running(control_plane, tmp_path, kubeconfig=kubeconfig) as dnstrail,
        Node(lab, control_plane, dnstrail) as node,
    ):
        serve_dns(node, control_plane)
        client = node.run_pod(lab.clients[0], cart(lab.clients[0], "steady-1"))
        node.ask_until_known(client)
        with asking(node, client) as steady:
            wait_until(lambda: is_refused(control_plane, token), "the token to expire", seconds=2 * GOOD_SECONDS)
            # A watch that is open goes on: a new connection shows that the token is no good any more.
            control_plane.restart()
            later = node.run_pod(lab.clients[1], cart(lab.clients[1], "later"))
            asked = len(steady.asked)
            wait_until(lambda: len(steady.asked) > asked + 20, "lookups without a good token", seconds=LINE_SECONDS)
            assert node.ask(later)["Client"]["Pod"] is None
            token.write_text(control_plane.token_for(NAMESPACE, ACCOUNT))

            assert node.ask_until_known(later, BACK_SECONDS)["Client"]["Pod"] == "later"
            assert_that_all_were_named(steady)


def is_refused(control_plane: ControlPlane, token: Path) -> bool:
    """Whether the API server takes the token no more."""
    try:
        control_plane.client(token.read_text()).list("v1", "Pod")
    except ApiError as error:
        return error.code == HTTPStatus.UNAUTHORIZED
    return False


def test_without_an_api_server_from_the_start_names_come_when_it_does(
    lab: Lab, control_plane: ControlPlane, tmp_path: Path
):
    furnish(control_plane)
    kubeconfig = control_plane.write_kubeconfig("late", {"token": control_plane.token_for(NAMESPACE, ACCOUNT)})
    control_plane.stop()

    with (
        running(control_plane, tmp_path, kubeconfig=kubeconfig) as dnstrail,
        Node(lab, control_plane, dnstrail) as node,
    ):
        place = lab.clients[0]
        for _ in range(10):
            name = node.name()
            place.dig(name)
            line = node.line(name)
            assert (line["Status"], line["Client"]["Pod"], line["Server"]["Service"]) == ("Succeeded", None, None)
            assert line["Server"]["Backend"] == f"{lab.servers[0].address}:53"
        control_plane.start()
        serve_dns(node, control_plane)
        client = node.run_pod(place, cart(place))
        line = node.ask_until_known(client, BACK_SECONDS)

    assert (line["Client"]["Pod"], line["Server"]["Service"]) == ("cart-7d9f-x2x", "kube-system/kube-dns")
