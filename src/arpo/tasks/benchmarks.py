"""The public benchmarks: where to find each one, its prompt, and the measure that scores its answers.

Knows a short entry for every benchmark. Refuses to know the peculiarities of rows (`benchmark_rows`), how to find a
file (`benchmark_files`), how to compare answers (`arpo.rewards`) and how to run an evaluation (`arpo.evaluation`).

>>> benchmark("gsm8k").metric
'maths'
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from arpo.errors import ConfigError, FormatError, nearest
from arpo.tasks import Task
from arpo.tasks import benchmark_rows as rows
from arpo.tasks.benchmark_files import local_file, normalized
from arpo.tasks.data import DataConfig, LoadReport, load_with_report
from arpo.tasks.rows import Skipped, TextRepair, task_from_row

Kind = Literal["reasoning", "knowledge", "deep_search"]
WHOLE = r"[-+]?\d[\d,]*(?:\.\d+)?"
GAIA_FORM = (
    "{question}\n\nGive the answer as a number, as few words as possible, or a comma separated list of these. Write "
    "numbers without thousands separators, and without units unless the question asks for them; write names without "
    "articles and abbreviations."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark. `tasks()` reads it; the fields describe it."""

    name: str
    title: str
    kind: Kind
    hub: str  # Hub id of the dataset
    split: str
    size: int  # number of questions in the split
    licence: str
    metric: str  # a word of `arpo.rewards.config:Measure`; a task's metadata["measure"] may name another one
    answers_are: str  # describes its golds
    options: Mapping[str, Any] = field(default_factory=dict)  # for `load_dataset`
    prompt: str = "{question}"
    gold: str = r"[\s\S]+"  # a regular expression that every gold matches
    files: tuple[str, ...] = ()  # other names of its files, without suffix
    columns: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of "question" and "answer"; the first that exists
    id_column: str = ""
    level: str = ""  # column
    category: str = ""  # column
    keep: tuple[str, ...] = ()  # further columns for the metadata
    access: str = ""  # how to get access to a gated set
    judged: bool = False  # its authors use a model as the judge, so our rule measures something else
    prepare: Callable[[rows.Row, str], rows.Row | Skipped] = rows.unchanged
    golds: Callable[[str], tuple[str, ...]] = rows.single_gold

    def tasks(self, *, data: str | Path | None = None, limit: int | None = None) -> list[Task]:
        """The questions, from a file in the folder `data` (or from `data`, if it is a file), else from the Hub.

        Metadata: family (the benchmark's name), level, category, measure, and question (if `prompt` adds text to it).
        Raises ConfigError (no such file, no access) or FormatError, which names file, line and value.
        """
        return self.load(data=data, limit=limit)[0]

    def load(self, *, data: str | Path | None = None, limit: int | None = None) -> tuple[list[Task], LoadReport]:
        """Like `tasks`, with a report on the rows that gave no task."""
        if data is None:
            config = DataConfig(source=f"hf:{self.hub}", split=self.split, limit=limit, options=dict(self.options))
        else:
            config = DataConfig(source=str(local_file(Path(data), (self.name, *self.files))), limit=limit)
        try:
            return load_with_report(config, read=self.read)
        except ConfigError as error:
            if data is not None:
                raise
            message = (
                f"{self.title} is gated: {self.access}"
                if self.access
                else f"{self.title} cannot be loaded from the Hub"
            )
            hint = f"Or read a file of it (--data DIR). The Hub's error: {error}"
            raise ConfigError(message, where=self.hub, hint=hint) from error

    def read(
        self, row: rows.Row, *, place: str, name: str, source: str, columns: Mapping[str, str], mend: TextRepair
    ) -> Task | Skipped:
        """The task in a row of this benchmark. Raises FormatError, which names place, key and value."""
        prepared = self.prepare(row, place)
        if isinstance(prepared, Skipped):
            return prepared
        own_columns = {role: next((key for key in keys if key in prepared), "") for role, keys in self.columns.items()}
        task = task_from_row(
            prepared,
            place=place,
            name=name,
            source=self.name,
            columns={**{role: key for role, key in own_columns.items() if key}, **columns},
            mend=mend,
        )
        if isinstance(task, Skipped):
            return task
        for gold in task.answers:
            if not re.fullmatch(self.gold, gold):
                raise FormatError(f"{place}: an answer of {self.title} is {self.answers_are} (got {gold!r:.80})")
        return self._with_prompt(task, prepared, name)

    def _with_prompt(self, task: Task, row: rows.Row, name: str) -> Task:
        metadata: dict[str, object] = {"family": self.name, "measure": row.get("measure") or self.metric}
        for key, column in (("level", self.level), ("category", self.category)):
            if column and row.get(column) not in (None, ""):
                metadata[key] = str(row[column])
        metadata.update({key: row[key] for key in self.keep if row.get(key) not in (None, "")})
        prompt = self.prompt.replace("{question}", task.question)
        if prompt != task.question:
            metadata["question"] = task.question
        row_id = row.get(self.id_column) if self.id_column else None
        return Task(
            id=f"{self.name}/{name.rsplit('/', 1)[-1] if row_id in (None, '') else row_id}",
            messages=(*task.messages[:-1], {"role": "user", "content": prompt}),
            answers=tuple(dict.fromkeys(form for gold in task.answers for form in self.golds(gold))),
            source=self.name,
            metadata=metadata,
        )


SHORT_NAMES = "a short name, date, number, yes or no; any of several forms"
GATE = "accept its conditions at https://huggingface.co/datasets/{hub}, then log in (`hf auth login`, or set HF_TOKEN)"

_ENTRIES: tuple[Benchmark, ...] = (
    Benchmark(
        name="aime24",
        title="AIME 2024",
        kind="reasoning",
        hub="HuggingFaceH4/aime_2024",
        split="train",
        size=30,
        licence="problems by the MAA; the set states none",
        metric="maths",
        answers_are="a whole number from 0 to 999",
        gold=r"\d{1,3}",
        files=("aime_2024", "aime2024"),
        id_column="id",
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        kind="reasoning",
        hub="math-ai/aime25",
        split="test",
        size=30,
        licence="Apache-2.0 (problems by the MAA)",
        metric="maths",
        answers_are="a whole number from 0 to 999",
        gold=r"\d{1,3}",
        files=("aime_2025", "aime2025"),
        id_column="id",
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        kind="reasoning",
        hub="HuggingFaceH4/MATH-500",
        split="test",
        size=500,
        licence="MIT",
        metric="maths",
        answers_are="a formula in LaTeX, a number, or a name",
        level="level",
        category="subject",
        id_column="unique_id",
    ),
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        kind="reasoning",
        hub="openai/gsm8k",
        split="test",
        options={"name": "main"},
        size=1319,
        licence="MIT",
        metric="maths",
        answers_are="a number, after #### at a solution's end",
        gold=WHOLE,
    ),
    Benchmark(
        name="math",
        title="MATH",
        kind="reasoning",
        hub="DigitalLearningGmbH/MATH-lighteval",
        split="test",
        size=5000,
        licence="MIT",
        metric="maths",
        answers_are="a formula in LaTeX, the last \\boxed{} of a solution",
        files=("hendrycks_math", "competition_math"),
        level="level",
        category="type",
        prepare=rows.math_row,
    ),
    Benchmark(
        name="hotpotqa",
        title="HotpotQA",
        kind="knowledge",
        hub="hotpotqa/hotpot_qa",
        split="validation",
        options={"name": "distractor"},
        size=7405,
        licence="CC-BY-SA-4.0",
        metric="f1",
        answers_are=SHORT_NAMES,
        files=("hotpot_qa", "hotpot"),
        level="level",
        category="type",
        id_column="id",
    ),
    Benchmark(
        name="2wiki",
        title="2WikiMultihopQA",
        kind="knowledge",
        hub="corag/multihopqa",
        split="validation",
        options={"name": "2wikimultihopqa"},
        size=12576,
        licence="Apache-2.0",
        metric="f1",
        answers_are=SHORT_NAMES,
        files=("2wikimultihopqa", "2wikimqa"),
        category="type",
        id_column="query_id",
    ),
    Benchmark(
        name="musique",
        title="MuSiQue",
        kind="knowledge",
        hub="dgslibisey/MuSiQue",
        split="validation",
        size=2417,
        licence="CC-BY-4.0",
        metric="f1",
        answers_are=SHORT_NAMES,
        files=("musique_ans", "musique_ans_v1.0_dev"),
        id_column="id",
        prepare=rows.musique_row,
    ),
    Benchmark(
        name="bamboogle",
        title="Bamboogle",
        kind="knowledge",
        hub="chiayewken/bamboogle",
        split="test",
        size=125,
        licence="MIT",
        metric="f1",
        answers_are=SHORT_NAMES,
    ),
    Benchmark(
        name="webwalker",
        title="WebWalkerQA",
        kind="deep_search",
        hub="callanwu/WebWalkerQA",
        split="main",
        size=680,
        licence="Apache-2.0",
        metric="f1",
        answers_are="a name, a date or a sentence or two, in English or Chinese",
        files=("webwalkerqa",),
        level="difficulty_level",
        category="domain",
        keep=("root_url",),
        judged=True,
        prepare=rows.webwalker_row,
    ),
    Benchmark(
        name="gaia",
        title="GAIA",
        kind="deep_search",
        hub="gaia-benchmark/GAIA",
        split="validation",
        options={"name": "2023_all"},
        size=127,
        licence="gated: not to be shared again",
        metric="gaia",
        answers_are="a number, a few words, or a comma separated list of these",
        prompt=GAIA_FORM,
        columns={"question": ("Question",), "answer": ("Final answer",)},
        level="Level",
        id_column="task_id",
        access=GATE.format(hub="gaia-benchmark/GAIA"),
        prepare=rows.gaia_row,
    ),
    Benchmark(
        name="hle",
        title="Humanity's Last Exam",
        kind="deep_search",
        hub="cais/hle",
        split="test",
        size=2158,
        licence="MIT, gated",
        metric="short",
        answers_are="a letter where choices are given, else a short phrase, number or formula",
        category="category",
        id_column="id",
        access=GATE.format(hub="cais/hle"),
        judged=True,
        prepare=rows.hle_row,
    ),
    Benchmark(
        name="xbench",
        title="xbench-DeepSearch",
        kind="deep_search",
        hub="xbench/DeepSearch",
        split="train",
        size=100,
        licence="MIT",
        metric="short",
        answers_are="a short phrase or a number with its unit, in Chinese",
        files=("DeepSearch", "xbench-DeepSearch", "xbench_deepsearch"),
        id_column="id",
        judged=True,
        prepare=rows.xbench_row,
        golds=rows.xbench_golds,
    ),
    Benchmark(
        name="simpleqa",
        title="SimpleQA",
        kind="knowledge",
        hub="basicv8vc/SimpleQA",
        split="test",
        size=4326,
        licence="MIT",
        metric="short",
        answers_are="a short name, date or number",
        files=("simple_qa", "simple_qa_test_set"),
        judged=True,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name` (ignoring case, - and _). Raises ConfigError, which names the nearest one."""
    for entry in _ENTRIES:
        if normalized(name) in map(normalized, (entry.name, entry.title, *entry.files)):
            return entry
    raise ConfigError(
        "there is no such benchmark", where="benchmark", value=name, hint=nearest(name.lower(), BENCHMARKS)
    )
