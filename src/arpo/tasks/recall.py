"""The recall world: a log of many pages, read one by one, and at its end a question about what the first ones said.

    log                                                  the question; what is asked stands on the last page
    <note></note>            rain fog rain               a page; most of them say nothing that counts
    <note></note>            fog rain amber              a fact, on one of the first pages: a colour, a place or a beast
    <note>amber</note>       fog calm rain               what is noted is kept where contexts are recomposed
    ...
    <note></note>            asked colour                the last page
    <answer>amber</answer>

The only tool turns a page and takes what the policy writes down. What makes the world hard is its length: at the
question, the pages of the facts have long been dropped. Options of `tasks` and `traces`, the world's knobs:

    turns  200   pages, the question's included: as many calls
    early   10   the facts stand on different pages of the first so many
    facts    2   facts of different kinds, one of which is asked for (at most 3)
    words    6   words of weather on a page

Knows the world and the agent whose traces teach the protocol: it notes a fact every other time. Refuses to know tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

from arpo.core.tree import Call
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tasks.knobs import WorldKnobs, count_of
from arpo.tasks.lab import COLOURS, PLACES, UNKNOWN
from arpo.tasks.traces import RecordedStep, Trace

WEATHER = ("calm", "cloud", "fog", "frost", "hail", "rain", "snow", "wind")
QUESTION, NOTED, ASKED = "log", "noted", "asked"
TOOL = "note"
BEASTS = ("bear", "crow", "deer", "fox", "hare", "lynx", "mole", "toad")
KINDS = {"colour": COLOURS[:8], "place": PLACES[:8], "beast": BEASTS}
COUNTS = {"train": 2000, "validation": 200, "test": 200}
NOTES = 0.5  # how often the agent of the traces notes a fact
LONGEST = 1600  # tokens of a trace, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs(WorldKnobs):
    """How long the log is. Raises ConfigError for a value out of range."""

    turns: int = 200
    early: int = 10
    facts: int = 2
    words: int = 6

    def __post_init__(self) -> None:
        self.check("turns", 2, 100_000)
        self.check("early", 1, self.turns - 1)
        self.check("facts", 1, min(self.early, len(KINDS)))
        self.check("words", 0, 100)


@dataclass(frozen=True, slots=True)
class Log:
    """One task's part of the world: its facts by page, and which kind is asked for."""

    name: str
    facts: Mapping[int, str]
    asked: str
    answer: str
    knobs: Knobs

    def page(self, number: int) -> str:
        """What stands on a page, from 1 on; behind the last one there is nothing but the question."""
        if number >= self.knobs.turns:
            return f"{ASKED} {self.asked}"
        weather = Random(f"recall/{self.name}/{number}").choices(WEATHER, k=self.knobs.words)
        return " ".join([*weather, *filter(None, [self.facts.get(number)])])


@lru_cache(4096)
def log(name: str, knobs: Knobs) -> Log:
    """The log of the task `name`."""
    random = Random(f"recall/{name}/{sorted(asdict(knobs).items())}")
    kinds = random.sample([*KINDS], knobs.facts)
    pages = random.sample(range(1, knobs.early + 1), knobs.facts)
    facts = {page: random.choice(KINDS[kind]) for page, kind in zip(pages, kinds, strict=True)}
    return Log(name, facts, kinds[0], facts[pages[0]], knobs)


def log_of(task: Task) -> Log:
    """The log of a task that `tasks` made. Raises ConfigError for any other."""
    if task.source != "recall":
        raise ConfigError("the recall world's tool knows its own tasks alone", where="tools", value=task.id)
    knobs: Any = task.metadata["knobs"]
    return log(task.id, Knobs(**knobs))


def tasks(split: str, **options: Any) -> list[Task]:
    """The tasks of a split ("train", "validation", "test") in a fixed order. Raises ConfigError for an unknown split or
    knob."""
    count = count_of(split, COUNTS, "recall world")
    knobs = Knobs.from_options(options, "recall world")
    return [_task(f"recall/{split}/{number:04d}", knobs) for number in range(count)]


def _task(name: str, knobs: Knobs) -> Task:
    # what tells two tasks apart is the log, not the words of the question
    metadata = {"knobs": asdict(knobs), "calls": knobs.turns, "question": name.replace("/", " ")}
    message = {"role": "user", "content": QUESTION}
    answer = log(name, knobs).answer
    return Task(id=name, messages=(message,), answers=(answer,), source="recall", metadata=metadata)


def traces(limit: int | None = None, seed: int = 0, **options: Any) -> list[Trace]:
    """How an agent that knows the protocol, but notes a fact only every other time, reads logs of its own: most of them
    short, so that it is soon seen that an answer repeats what was read; some long; and ends of logs, in contexts that
    were rewritten after its notes. What it no longer has before it, it calls unknown. Raises ConfigError."""
    knobs = Knobs.from_options(options, "recall world")
    return [_trace(f"recall/trace/{seed}/{number}", knobs) for number in range(limit or COUNTS["train"])]


def _trace(name: str, knobs: Knobs) -> Trace:
    random = Random(f"{name}/agent")
    most = max(knobs.facts + 1, min(knobs.turns, LONGEST // (knobs.words + 8)))
    kind = random.choices(("short", "rewritten", "long"), (50, 47, 3))[0]
    turns = random.randint(knobs.facts + 1, most if kind == "long" else min(most, 5))
    words = knobs.words if kind == "long" else int(random.random() ** 2 * (knobs.words + 1))
    one = log(name, replace(knobs, turns=turns, early=min(knobs.early, turns - 1), words=words))
    noted = [fact for _, fact in sorted(one.facts.items()) if random.random() < NOTES]
    task = _task(name, one.knobs)
    if kind != "rewritten":
        known = one.answer  # the pages are still there
        return Trace(task, (*_read(one, range(1, turns + 1), noted), RecordedStep(answer=known)))
    pages = range(turns - int(random.random() ** 4 * most / 2), turns + 1)  # few where the note is far away
    unread = replace(one, facts={})
    if noted:
        memory = "\n".join([QUESTION, "", NOTED, *noted])
        task = replace(task, messages=({"role": "user", "content": memory},))
    known = one.answer if one.answer in noted else UNKNOWN
    return Trace(task, (*_read(unread, pages, ()), RecordedStep(answer=known)))


def _read(one: Log, pages: Sequence[int], noted: Sequence[str]) -> Iterator[RecordedStep]:
    """Turns that read `pages`, and note each of `noted` in the turn after its page."""
    last = ""
    for number in pages:
        arguments = {"text": last} if last in noted else {}
        yield RecordedStep(calls=(Call(name=TOOL, arguments=arguments),), results=(one.page(number),))
        last = one.facts.get(number, "")
