"""The file of the socket: who may use it, and what becomes of one that is there already."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from agent.readers.place import Place, PlaceError


def test_only_the_owner_may_connect_whatever_the_umask_says(tmp_path: Path):
    before = os.umask(0)
    try:
        place = Place(str(tmp_path / "new" / "trace.sock"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.path.parent.stat().st_mode) == 0o700
    place.close()


def test_nothing_is_left_behind(tmp_path: Path):
    Place(str(tmp_path / "trace.sock")).close()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_an_agent_that_is_gone_is_taken_over(tmp_path: Path):
    path = tmp_path / "trace.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    place = Place(str(path))
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
    place.close()


def test_an_agent_that_lives_keeps_its_socket(tmp_path: Path):
    path = str(tmp_path / "trace.sock")
    first = Place(path)
    with pytest.raises(PlaceError, match="another dnstrail listens there"):
        Place(path)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(path)
    first.close()


def test_of_two_agents_that_start_at_once_over_a_stale_file_one_listens(tmp_path: Path):
    path = tmp_path / "trace.sock"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
        found: list[Place | None] = []
        barrier = threading.Barrier(2)

        def start(found: list[Place | None] = found, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                found.append(Place(str(path)))
            except PlaceError:
                found.append(None)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        places = [place for place in found if place is not None]
        assert len(places) == 1
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(path))
        places[0].close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path):
    path = tmp_path / "trace.sock"
    path.write_text("precious")
    with pytest.raises(PlaceError, match="no socket"):
        Place(str(path))
    assert path.read_text() == "precious"


def test_the_socket_of_a_later_agent_is_not_removed(tmp_path: Path):
    path = tmp_path / "trace.sock"
    first = Place(str(path))
    path.unlink()
    second = Place(str(path))
    first.close()
    first.close()
    assert path.exists()
    second.close()


@pytest.mark.parametrize("path", ["/proc/no/such/trace.sock", "/proc/trace.sock"])
def test_a_place_that_cannot_be_had_is_an_error_in_words(path: str):
    with pytest.raises(PlaceError, match=r"\w+"):
        Place(path)
