"""Prints the confusion matrix: `python -m tests.verdicts [--each N] [--repetitions N] [WORDS…]`.

Exit 1 unless every fault that this kernel knows was told as its case demands.
"""

from __future__ import annotations

import argparse
import sys

from tests.verdicts.campaign import Pace, run
from tests.verdicts.cases import CASES, planes
from tests.verdicts.matrix import by_code, by_fault, summary

EACH, REPETITIONS = 3, 20
EXAMPLES = 3


def main() -> int:
    parser = argparse.ArgumentParser(description="inject every fault, and print what dnstrail says of it")
    parser.add_argument("--each", type=int, default=EACH, help="how often each fault is injected")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="how often those are that do not lose something each time"
    )
    parser.add_argument(
        "words", nargs="*", help="only cases with one of these words in their name or code; all but data planes"
    )
    options = parser.parse_args()
    # Data planes have a table of their own: tests.verdicts.dataplanes.
    cases = CASES if options.words else [case for case in CASES if case not in planes.CASES]
    chosen = [case for case in cases if wanted(f"{case.fault} {case.code}", options.words)]
    if not chosen:
        parser.error(f"no case has any of {options.words}")
    results = run(chosen, Pace(options.each, options.repetitions), progress=True)
    print(by_fault(results), by_code(results), summary(results), sep="\n\n")
    for result in results:
        for mistake in result.mistakes[:EXAMPLES]:
            print(f"{result.case.fault}: {mistake}")
    tried = [result for result in results if not result.unsupported]
    return 0 if tried and all(result.good for result in tried) else 1


def wanted(text: str, words: list[str]) -> bool:
    return not words or any(word.lower() in text.lower() for word in words)


if __name__ == "__main__":
    sys.exit(main())
