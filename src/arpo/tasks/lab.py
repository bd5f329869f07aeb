"""The laboratory's world: trails to follow, through places that are drawn anew for each task, so that nothing about
them can be memorised. What can be learnt is how to decide: which door to try, when to check, when to turn back.

    start:mill heard:cave heard:rope          the question: where the trail starts, and two rumours
    <look>mill</look>     doors mossy:well worn:cave odd:lamp      one door leads on, the others are dead ends
    <ask>cave</ask>       yes | no | unsure                         is this place on the trail?
    <look>cave</look>     nothing                                   a dead end, or a place in the dark
    <search>cave</search> doors any:fort any:tree any:desk          sees in the dark, but no cues
    <look>tree</look>     holds:amber                               the end of the trail: the answer

After `nothing` the policy cannot know whether it chose the wrong door or stands in the dark, so what to do next is
uncertain, and what the cues and rumours said before bears on it. Options of `tasks` and `traces`, the world's knobs:

    depth      2     doors to pass on the way: at least depth + 1 calls
    branching  3     doors of a place, one of which leads on (1: nothing to choose)
    noise      0.2   probability that a place of the trail is dark, and that `ask` is unsure
    signal     1.0   how much a cue tells: of a door with cue c the odds to lead on grow by exp(2 signal z_c), z_c from
                     -1 to 1 over `CUES` (0: cues tell nothing)
    rumours    0.5   probability that a rumour names a place of the trail, rather than any place

Knows the world, its questions and the clumsy agent whose traces teach the protocol. Refuses to know tokens and tools.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from random import Random
from typing import Any

from arpo.core.tree import Call
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tasks.knobs import WorldKnobs, count_of
from arpo.tasks.traces import RecordedStep, Trace

PLACES = (
    "barn", "bay", "camp", "cave", "cliff", "creek", "desk", "farm", "fort", "gate", "grove", "hall", "inn", "kiln",
    "lamp", "mill", "mine", "moor", "pier", "pond", "ridge", "shed", "tower", "well",
)  # fmt: skip
CUES = ("bent", "broken", "dusty", "odd", "plain", "carved", "mossy", "worn")  # the last ones tend to lead on
COLOURS = (
    "amber", "azure", "coral", "ebony", "gold", "ivory", "jade", "lilac", "ochre", "pearl", "ruby", "silver",
)  # fmt: skip
NOTHING, UNKNOWN = "nothing", "unknown"
COUNTS = {"train": 4000, "validation": 400, "test": 400}
TOOLS = ("look", "search", "ask")
MAX_CALLS = 6  # of a trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs(WorldKnobs):
    """How hard the world is. Raises ConfigError for a value out of range."""

    depth: int = 2
    branching: int = 3
    noise: float = 0.2
    signal: float = 1.0
    rumours: float = 0.5

    def __post_init__(self) -> None:
        self.check("branching", 1, len(CUES))
        self.check("depth", 1, (len(PLACES) - 1) // self.branching)
        self.check("noise", 0, 1, whole=False)
        self.check("signal", 0, 10, whole=False)
        self.check("rumours", 0, 1, whole=False)


@dataclass(frozen=True, slots=True)
class Trail:
    """One task's part of the world. `doors` holds, by place of the trail but the last one, what its doors lead to, with
    their cues."""

    path: tuple[str, ...]
    doors: Mapping[str, tuple[tuple[str, str], ...]]
    dark: frozenset[str]
    vague: frozenset[str]  # places of which `ask` is unsure
    rumours: tuple[str, str]
    colour: str

    @property
    def question(self) -> str:
        return f"start:{self.path[0]} heard:{self.rumours[0]} heard:{self.rumours[1]}"

    def answer(self, tool: str, place: str) -> str:
        """What `tool` returns for `place`."""
        on_trail = place in self.path
        if tool == "ask":
            return "unsure" if place in self.vague else "yes" if on_trail else "no"
        if not on_trail or (tool == "look" and place in self.dark):
            return NOTHING
        if place == self.path[-1]:
            return f"holds:{self.colour}"
        return "doors" + "".join(f" {cue if tool == 'look' else 'any'}:{name}" for cue, name in self.doors[place])


@lru_cache(4096)
def trail(name: str, knobs: Knobs) -> Trail:
    """The trail of the task `name`."""
    random = Random(f"lab/{name}/{sorted(asdict(knobs).items())}")
    names = random.sample(PLACES, 1 + knobs.depth * knobs.branching)
    path, doors, free = [names[0]], {}, names[1:]
    z = [2 * i / (len(CUES) - 1) - 1 for i in range(len(CUES))]
    for _ in range(knobs.depth):
        behind, free = free[: knobs.branching], free[knobs.branching :]
        cues = [
            random.choices(CUES, [math.exp((1 if i == 0 else -1) * knobs.signal * x) for x in z])[0]
            for i in range(len(behind))
        ]
        listed = list(zip(cues, behind, strict=True))
        random.shuffle(listed)
        doors[path[-1]] = tuple(listed)
        path.append(behind[0])
    dark = frozenset(place for place in path[1:] if random.random() < knobs.noise)  # the start is never dark
    vague = frozenset(place for place in names if random.random() < knobs.noise)
    first, second = (random.choice(path[1:] if random.random() < knobs.rumours else PLACES) for _ in range(2))
    return Trail(tuple(path), doors, dark, vague, (first, second), random.choice(COLOURS))


def trail_of(task: Task) -> Trail:
    """The trail of a task that `tasks` made. Raises ConfigError for any other."""
    if task.source != "lab":
        raise ConfigError("the laboratory's tools know its own tasks alone", where="tools", value=task.id)
    knobs: Any = task.metadata["knobs"]
    return trail(task.id, Knobs(**knobs))


def tasks(split: str, **options: Any) -> list[Task]:
    """The tasks of a split ("train", "validation", "test") in a fixed order. No two have the same question. Raises
    ConfigError for an unknown split or knob."""
    count_of(split, COUNTS, "lab")
    return list(_tasks(Knobs.from_options(options, "lab"))[split])


@lru_cache(8)
def _tasks(knobs: Knobs) -> dict[str, tuple[Task, ...]]:
    seen: set[str] = set()
    splits: dict[str, tuple[Task, ...]] = {}
    for split in ("test", "validation", "train"):
        made: list[Task] = []
        number = 0
        while len(made) < COUNTS[split]:
            name = f"lab/{split}/{number:04d}"
            number += 1
            one = trail(name, knobs)
            if one.question not in seen:
                seen.add(one.question)
                message = {"role": "user", "content": one.question}
                metadata = {
                    "knobs": asdict(knobs),
                    "calls": knobs.depth + 1,
                    "question": f"trail {split}{number}",  # what tells two tasks apart is the trail, not its words
                }
                made.append(Task(id=name, messages=(message,), answers=(one.colour,), source="lab", metadata=metadata))
        splits[split] = tuple(made)
    return splits


def traces(limit: int | None = None, seed: int = 0, **options: Any) -> list[Trace]:
    """How a clumsy agent acts on the training tasks: it knows the protocol, picks three doors of five by rumours and
    cues and the others at random, checks some of them, and after `nothing` searches, turns back or gives up by chance.
    `seed` varies what it does. Raises ConfigError."""
    return [_clumsy(task, Random(f"lab/trace/{task.id}/{seed}")) for task in tasks("train", **options)[:limit]]


def _clumsy(task: Task, random: Random) -> Trace:
    here = trail_of(task)
    steps: list[RecordedStep] = []
    choices: list[list[str]] = []  # untried doors, by place on the way, the likeliest last
    place, tool = here.path[0], "look"
    while len(steps) < MAX_CALLS:
        result = here.answer(tool, place)
        steps.append(RecordedStep(calls=(Call(name=tool, arguments={"place": place}),), results=(result,)))
        if result.startswith("holds:"):
            return Trace(task, (*steps, RecordedStep(answer=result.removeprefix("holds:"))))
        if result.startswith("doors"):
            doors = [door.split(":") for door in result.split()[1:]]
            doors.sort(key=lambda door: (door[1] in here.rumours, CUES.index(door[0]) if door[0] in CUES else 0))
            choices.append([name for _, name in doors])
        elif tool == "ask" and result != "no":
            tool = "look"
            continue
        elif result == NOTHING and tool == "look" and random.random() < 0.3:
            tool = "search"
            continue
        elif result == NOTHING and random.random() < 0.35:
            break
        if not choices or not choices[-1]:
            break
        place = choices[-1].pop(-1 if random.random() < 0.6 else random.randrange(len(choices[-1])))
        tool = "ask" if random.random() < 0.25 else "look"
    return Trace(task, (*steps, RecordedStep(answer=UNKNOWN)))
