"""The confusion matrix in two sizes: by fault, and by code."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from agent.explain.causes import CAUSES
from tests.verdicts.campaign import MISSED, NONE, Result

ORDER = {code: number for number, code in enumerate([*CAUSES, NONE, MISSED])}
NAMES = {NONE: "no cause", MISSED: "no session"}
INDENT = "  "
COUNT_WIDTH, FAULTS_WIDTH, GAP = 8, 7, 2


def rank(code: str) -> int:
    """Where a code stands: as in the list of causes; new ones before those without a cause."""
    return ORDER.get(code, ORDER[NONE])


def by_fault(results: Sequence[Result]) -> str:
    """What was injected by what was reported, in groups of one expected code each.

    A group's columns are the codes that any of its rows got, the expected one first: what has no column has no count.
    The expected ones are in brackets. Notes follow at the end.
    """
    width = max(len(result.case.fault) for result in results) + len(INDENT)
    notes = _Notes()
    groups = itertools.groupby(sorted(results, key=lambda one: rank(one.expected)), key=lambda one: one.expected)
    lines = [line for code, group in groups for line in (*_group(code, list(group), width, notes), "")]
    return "\n".join([*lines, *notes.lines])


def _group(expected: str, results: Sequence[Result], width: int, notes: _Notes) -> Iterator[str]:
    reported = {code for result in results for code in result.reported} - {expected}
    codes = [expected, *sorted(reported, key=rank)]
    widths = [len(code) + GAP for code in codes]
    heads = "".join(f"{code:>{width}}" for code, width in zip(codes, widths, strict=True))
    yield f"{NAMES.get(expected, expected):{width}}{'lookups':>{COUNT_WIDTH}}{heads}"
    for result in results:
        cells = "".join(
            f"{_cell(result.reported[code], code == expected):>{width}}"
            for code, width in zip(codes, widths, strict=True)
        )
        said = "" if result.good else f"  {len(result.mistakes)} MISTAKES"
        name = INDENT + result.case.fault
        yield f"{name:{width}}{result.lost or '.':>{COUNT_WIDTH}}{cells}{said}{notes.mark(result)}"


def _cell(count: int, is_expected: bool) -> str:  # noqa: FBT001  a cell's two properties
    if not count:
        return "."
    return f"[{count}]" if is_expected else str(count)


class _Notes:
    """Footnotes, each text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, result: Result) -> str:
        texts = list(_notes_of(result))
        numbers = [self._numbers.setdefault(text, len(self._numbers) + 1) for text in texts]
        return "".join(f"  ({number})" for number in numbers)

    @property
    def lines(self) -> list[str]:
        return [f"({number}) {text}" for text, number in self._numbers.items()]


def _notes_of(result: Result) -> Iterator[str]:
    case = result.case
    if result.unsupported:
        yield f"not on this kernel: {result.unsupported}"
    elif case.limit and case.also:
        yield f"limit: {case.limit}; so it may be called {' or '.join(sorted(case.also))}, and never for certain"
    elif case.limit:
        yield f"limit: {case.limit}; so the confidence is {case.confidence or 'not always high'}"


def by_code(results: Sequence[Result]) -> str:
    """What was expected by what was reported, all faults together: the columns have the rows' numbers."""
    counts: dict[str, Counter[str]] = {}
    faults: Counter[str] = Counter()
    for result in results:
        counts.setdefault(result.expected, Counter()).update(result.reported)
        faults[result.expected] += not result.unsupported
    codes = sorted({*counts, *(code for row in counts.values() for code in row)}, key=rank)
    cells = [[_cell(counts.get(row, Counter())[code], row == code) for code in codes] for row in codes]
    total = [str(sum(row[code] for row in counts.values()) or ".") for code in codes]
    numbers = [str(number) for number in range(1, len(codes) + 1)]
    widths = [max(map(len, column)) + 1 for column in zip(numbers, *cells, total, strict=True)]
    names = [NAMES.get(code, code) for code in codes]
    width = max(map(len, names))

    def line(number: str, name: str, count: str, texts: Iterable[str]) -> str:
        columns = "".join(f"{text:>{one}}" for text, one in zip(texts, widths, strict=True))
        return f"{number:>2} {name:{width}}{count:>{FAULTS_WIDTH}} {columns}"

    rows = (
        line(number, name, str(faults[code] or "."), row)
        for number, name, code, row in zip(numbers, names, codes, cells, strict=True)
    )
    return "\n".join([line("", "expected", "faults", numbers), *rows, line("", "sum", str(faults.total()), total)])


def summary(results: Sequence[Result]) -> str:
    """The sums in a line."""
    tried = [result for result in results if not result.unsupported]
    good = sum(result.good for result in tried)
    limited = sum(bool(result.case.limit) for result in tried)
    lookups = sum(result.lost for result in tried)
    missing = len(results) - len(tried)
    again = sum(bool(result.at_first) for result in tried)
    words = [
        f"{good} of {len(tried)} faults diagnosed correctly over {lookups} lookups",
        f"{limited} with a limit that is named",
    ]
    words += [f"{again} tried twice, because the machine stood still"] if again else []
    return "; ".join([*words, *([f"{missing} cannot be injected on this kernel"] if missing else [])]) + "."
