"""Scoring answers: 10,000 pairs of answer and gold by the measure `maths`, each distinct, on one core.

Pairs come from the verdicts of the tests, and every text is made new by a term that is added to it, so that nothing is
remembered from an earlier pair. `--quick`: 200 pairs.
"""

import argparse
import json
import time
from pathlib import Path

from _figures import at_most, finish

from arpo.rewards.maths import maths

VERDICTS = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "verdicts.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    num_pairs = 200 if parser.parse_args().quick else 10_000
    rows = [json.loads(line) for line in VERDICTS.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["answer"], row["gold"]) for row in rows if row["measure"] == "maths"]
    longest, began = 0.0, time.process_time()
    for at in range(num_pairs):
        answer, gold = pairs[at % len(pairs)]
        start = time.process_time()
        maths(f"{answer} + {at}" if at >= len(pairs) else answer, f"{gold} + {at}" if at >= len(pairs) else gold)
        longest = max(longest, time.process_time() - start)
    seconds = time.process_time() - began
    figures = {"pairs": num_pairs, "cpu_s": seconds, "longest_s": longest}
    return finish(
        "answers", figures, [at_most("processor seconds for 10,000 pairs", 30.0, seconds * 10_000 / num_pairs)]
    )


if __name__ == "__main__":
    raise SystemExit(main())
