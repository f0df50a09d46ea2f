"""Prints the confusion matrix: `python -m tests.verdicts [--repetitions N] [WORDS…]`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.verdicts.campaign import Result, run
from tests.verdicts.cases import CASES

REPETITIONS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description="inject every fault, and print what dnstrail says of it")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="how often each fault is injected")
    parser.add_argument("words", nargs="*", help="only cases with one of these words in their name or code")
    options = parser.parse_args()
    chosen = [case for case in CASES if wanted(f"{case.fault} {case.code}", options.words)]
    results = run(chosen, options.repetitions, progress=True)
    print(matrix(results))
    for result in results:
        for mistake in result.mistakes[:3]:
            print(f"{result.case.fault}: {mistake}")
    return 0 if all(result.good for result in results) else 1


def wanted(text: str, words: list[str]) -> bool:
    return not words or any(word.lower() in text.lower() for word in words)


def matrix(results: list[Result]) -> str:
    """Rows: what was injected; columns: what was reported. What is on the diagonal is marked."""
    codes = sorted({code for result in results for code in result.reported})
    width = max(len(result.case.fault) for result in results)
    lines = [f"{'':{width}}  {'expected':22} " + " ".join(f"{code[:22]:>10}" for code in codes) + "  verdict"]
    for result in results:
        cells = " ".join(f"{cell(result, code):>{max(10, min(22, len(code)))}}" for code in codes)
        verdict = result.unsupported and f"not on this kernel: {result.unsupported}"
        verdict = verdict or ("good" if result.good else f"{len(result.mistakes)} MISTAKES")
        limit = f" ({result.case.limit})" if result.case.limit else ""
        lines.append(f"{result.case.fault:{width}}  {result.case.code or 'none':22} {cells}  {verdict}{limit}")
    totals = Counter(result.good for result in results if not result.unsupported)
    lost = sum(result.lost for result in results)
    lines += ["", f"{totals[True]} of {totals.total()} faults told right, over {lost} lookups."]
    return "\n".join(lines)


def cell(result: Result, code: str) -> str:
    count = result.reported[code]
    if not count:
        return "."
    return f"[{count}]" if code == (result.case.code or "none") else str(count)


if __name__ == "__main__":
    sys.exit(main())
