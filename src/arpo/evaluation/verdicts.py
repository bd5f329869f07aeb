"""Every verdict of a judge as a line on disk, written the moment it is there, and what they come to beside the rule.

    EVALUATION/judged.jsonl: {schema, key, benchmark, id, sample, judge, prompt, question, golds, answer, verdict,
    reason,
                              final_answer, rule, failure}

Knows lines and figures. Refuses to know how a verdict is had. `key` stands for judge, prompt, question, golds and
answer: what is there under it is not asked again, also for another sample with the same answer.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from arpo.errors import FormatError
from arpo.evaluation.results import POWERS
from arpo.evaluation.statistics import Estimate, pass_at, rate, wilson
from arpo.files import cut_unfinished_line, json_line, open_to_append, read_json_lines
from arpo.foreign import checked

FILE = "judged.jsonl"
SCHEMA = "arpo/verdict/1"
Word = Literal["right", "wrong", "none"]
NO_ANSWER = "no answer was given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says of one answer. `verdict` "none": it could not be had, and `failure` says why."""

    key: str
    benchmark: str
    id: str
    sample: int
    judge: str  # model and endpoint; empty where nobody had to be asked
    prompt: str  # the digest of its instruction
    question: str
    golds: tuple[str, ...]
    answer: str | None
    verdict: Word
    reason: str = ""
    final_answer: str = ""  # what the judge took for the answer
    rule: float = 0.0  # accuracy by the rule-based measure
    failure: str = ""

    @property
    def right(self) -> bool:
        return self.verdict == "right"


def key_of(judge: str, prompt: str, question: str, golds: Sequence[str], answer: str | None) -> str:
    parts = json.dumps([judge, prompt, question, list(golds), answer], ensure_ascii=False)
    return hashlib.sha256(parts.encode("utf-8", "replace")).hexdigest()[:24]


def append_verdict(folder: Path, verdict: Verdict) -> None:
    """One line, whole or, where the process is killed, cut off: `read_verdicts` passes it over, the next one replaces
    it."""
    with open_to_append(folder / FILE) as file:
        cut_unfinished_line(file)
        file.write(json_line({"schema": SCHEMA, **asdict(verdict)}))


def read_verdicts(folder: Path) -> list[Verdict]:
    """Raises FormatError, naming the line, for anything but a last line that was cut off."""
    path, known, verdicts = folder / FILE, {each.name for each in fields(Verdict)}, []
    for number, line in enumerate(read_json_lines(path), 1):
        try:
            if line.pop("schema") != SCHEMA or not known >= line.keys():
                raise ValueError(f"expected {SCHEMA}")
            verdicts.append(checked(Verdict(**{**line, "golds": tuple(line["golds"])})))
        except (KeyError, TypeError, ValueError, FormatError) as error:
            raise FormatError(f"{path}, line {number} is no verdict: {error!r:.300}") from error
    return verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far judge and rule say the same of the same answers. `kappa` (Cohen's): 0 by chance, 1 always; NaN where one
    of them always says the same thing."""

    both_right: int
    both_wrong: int
    only_judge: int  # right by the judge alone
    only_rule: int
    agree: Estimate
    kappa: float

    @property
    def num(self) -> int:
        return self.both_right + self.both_wrong + self.only_judge + self.only_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the verdicts of an evaluation come to; each figure over the answers that have a verdict."""

    accuracy: Estimate  # by the judge
    by_rule: Estimate
    agreement: Agreement
    by_benchmark: Mapping[str, Agreement]
    accuracy_by_benchmark: Mapping[str, Estimate]
    pass_at: Mapping[str, Mapping[int, Estimate]]  # by benchmark, for k up to the fewest verdicts on a question
    unread: int  # answers without a verdict
    apart: tuple[Verdict, ...] = field(default=())  # where judge and rule differ


def judged(verdicts: Iterable[Verdict], *, seed: int = 0) -> Judged:
    """Compute every figure; of two verdicts on one sample the later counts."""
    last = {(v.benchmark, v.id, v.sample): v for v in verdicts}
    read = [v for _, v in sorted(last.items()) if v.verdict != "none"]
    names = sorted({v.benchmark for v in read})
    return Judged(
        accuracy=_rate(read, seed, rule=False),
        by_rule=_rate(read, seed, rule=True),
        agreement=agreement(read),
        by_benchmark={name: agreement([v for v in read if v.benchmark == name]) for name in names},
        accuracy_by_benchmark={
            name: _rate([v for v in read if v.benchmark == name], seed, rule=False) for name in names
        },
        pass_at={name: _passes([v for v in read if v.benchmark == name], seed) for name in names},
        unread=len(last) - len(read),
        apart=tuple(v for v in read if v.right != (v.rule >= 0.5)),
    )


def _rate(verdicts: Sequence[Verdict], seed: int, *, rule: bool) -> Estimate:
    by_question: dict[str, list[float]] = {}
    for v in verdicts:
        by_question.setdefault(f"{v.benchmark}/{v.id}", []).append(v.rule if rule else float(v.right))
    return rate(by_question, seed=seed, purpose="rule" if rule else "judge")


def _passes(verdicts: Sequence[Verdict], seed: int) -> dict[int, Estimate]:
    by_question: dict[str, list[bool]] = {}
    for v in verdicts:
        by_question.setdefault(v.id, []).append(v.right)
    fewest = min(map(len, by_question.values()))
    return {k: pass_at(by_question, k, seed=seed) for k in sorted({*POWERS, fewest}) if k <= fewest}


def agreement(verdicts: Sequence[Verdict]) -> Agreement:
    """Of verdicts that were had. The rule calls an answer right from 0.5 on."""
    pairs = [(v.right, v.rule >= 0.5) for v in verdicts]
    n, same = len(pairs), sum(j == r for j, r in pairs)
    judge, rule = sum(j for j, _ in pairs), sum(r for _, r in pairs)
    chance = (judge * rule + (n - judge) * (n - rule)) / (n * n) if n else 1.0
    return Agreement(
        both_right=sum(j and r for j, r in pairs),
        both_wrong=sum(not j and not r for j, r in pairs),
        only_judge=sum(j and not r for j, r in pairs),
        only_rule=sum(r and not j for j, r in pairs),
        agree=wilson(same, n),
        kappa=(same / n - chance) / (1 - chance) if n and chance < 1 else math.nan,
    )


def as_study(judged: Judged, judge: str) -> dict[str, Any]:
    """As results.json keeps it, with tables for reports."""
    names = [*judged.by_benchmark]
    rows = [
        [name, judged.accuracy_by_benchmark[name].percent, *_agreement_cells(judged.by_benchmark[name])]
        for name in names
    ] + ([["all", judged.accuracy.percent, *_agreement_cells(judged.agreement)]] if len(names) != 1 else [])
    head = ["", "right by the judge", "agrees with the rule", "kappa", "judge alone", "rule alone"]
    note = (
        f"Judge: {judge}. The rule says {judged.by_rule.percent} of the same answers. "
        f"Every verdict with its reason: {FILE}."
    )
    ks = sorted({k for passes in judged.pass_at.values() for k in passes if k > 1})
    passes = [[name, *(_percent(at.get(k)) for k in ks)] for name, at in judged.pass_at.items()] if ks else []
    apart = [
        [f"{v.id} #{v.sample}", " | ".join(v.golds), v.answer or "", v.verdict, v.reason] for v in judged.apart[:20]
    ]
    tables = [{"title": "Judged answers", "head": head, "rows": rows, "note": note}]
    if passes:
        head = ["", *(f"pass@{k}" for k in ks)]
        tables.append({"title": "pass@k by the judge", "head": head, "rows": passes, "note": "Over judged answers."})
    if apart:
        columns = ["answer", "golds", "given", "judge", "reason"]
        tables.append(
            {
                "title": "Where judge and rule differ",
                "head": columns,
                "rows": apart,
                "note": f"{len(judged.apart)} in all.",
            }
        )
    warnings = [f"{judged.unread} answers have no verdict; ask again to have them"] if judged.unread else []
    return {
        "tables": tables,
        "warnings": warnings,
        "judge": judge,
        **{k: v for k, v in asdict(judged).items() if k != "apart"},
    }


def _percent(estimate: Estimate | None) -> str:
    return "-" if estimate is None else estimate.percent


def _agreement_cells(agreement: Agreement) -> list[str]:
    kappa = "-" if math.isnan(agreement.kappa) else f"{agreement.kappa:.2f}"
    return [agreement.agree.percent, kappa, str(agreement.only_judge), str(agreement.only_rule)]
