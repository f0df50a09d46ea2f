"""agent.page.memory: the newest problems in a bounded number of bytes, and a count of those that are gone."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, HopLine, Line, build
from agent.page.memory import BLOCK_LINES, MAX_BYTES, MAX_LINE_BYTES, Memory
from tests.unit.conftest import START, Lookup, World, dropped


def line(name: str = "n.example.") -> Line:
    outcome = World().outcome(dropped(Lookup(name=name).query(START), 2))
    return build(outcome, explain(outcome), Context("node-a", 0), with_messages=False)


ANY = line()


def filled(number: int, max_bytes: int = MAX_BYTES) -> Memory:
    memory = Memory(max_bytes)
    for _ in range(number):
        memory.keep(ANY)
    return memory


def serials(memory: Memory, before: int | None = None, most: int = 10_000) -> list[int]:
    return [kept.serial for kept in memory.newest(before, most)]


def test_what_was_kept_last_comes_first():
    assert serials(filled(3)) == [3, 2, 1]


def test_a_line_comes_back_as_it_was():
    memory = Memory()
    memory.keep(ANY, 17)
    (kept,) = memory.newest(None, 1)
    assert (kept.serial, kept.incident, kept.line) == (1, 17, ANY)


@given(
    number=st.integers(0, 3 * BLOCK_LINES), before=st.none() | st.integers(0, 4 * BLOCK_LINES), most=st.integers(0, 99)
)
def test_any_part_can_be_asked_for(number: int, before: int | None, most: int):
    wanted = [serial for serial in range(number, 0, -1) if before is None or serial < before]
    assert serials(filled(number), before, most) == wanted[:most]


def test_the_bound_holds_and_what_is_gone_is_counted():
    memory, most = Memory(30_000), 0
    for number in range(3000):
        memory.keep(ANY)
        most = max(most, memory.size_bytes)
        assert memory.kept + memory.forgotten == number + 1
    assert memory.forgotten
    assert serials(memory) == list(range(3000, memory.forgotten, -1))
    # Of lines that wait to be compressed there may be a block beyond.
    assert most <= 30_000 + BLOCK_LINES * MAX_LINE_BYTES
    assert memory.size_bytes <= 30_000 + BLOCK_LINES * 4096


def test_one_is_found_by_its_number_unless_it_is_gone():
    memory = filled(3000, 30_000)
    found = memory.find(memory.forgotten + 1)
    assert found is not None
    assert found.serial == memory.forgotten + 1
    assert memory.find(memory.forgotten) is None
    assert memory.find(3001) is None


def test_a_line_that_is_too_long_is_counted_and_not_kept():
    memory, long = Memory(), line()
    long.path = [HopLine("STUB_QUERY", "tx", 0.0, 1, "x" * 500, "1.2.3.4:5", "1.2.3.4:53")] * 200
    memory.keep(long)
    assert (memory.too_long, memory.kept, memory.next) == (1, 0, 1)


def test_who_reads_meanwhile_sees_each_line_once_and_in_order():
    memory, wrong = Memory(100_000), []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = serials(memory, None, 400)
            if found != sorted(set(found), reverse=True):
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3000):
        memory.keep(ANY)
    done.set()
    reader.join()
    assert wrong == []
