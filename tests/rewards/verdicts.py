"""Answers, gold answers and the right verdict, written by hand from the forms that benchmarks' answers take.

`verdicts.jsonl` has one case a line: `measure`, `answer`, `gold`, `right`, and in `about` where its form comes from or
why the verdict is what it is. F1 is held against 0.5, as an evaluation does.
"""

import json
from pathlib import Path

Case = tuple[str, str, bool]  # answer, gold, right


def read_verdicts(path: Path = Path(__file__).with_suffix(".jsonl")) -> dict[str, list[Case]]:
    """The cases by measure, in the order of the file."""
    cases: dict[str, list[Case]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cases.setdefault(row["measure"], []).append((row["answer"], row["gold"], row["right"]))
    return cases


VERDICTS = read_verdicts()
