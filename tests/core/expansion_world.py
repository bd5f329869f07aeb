"""A world for expansions: what every turn would be is fixed by its place; when it happens is drawn by a timing."""

from array import array
from dataclasses import dataclass, field
from random import Random

from arpo.core import (
    BranchRule,
    Call,
    CallStatus,
    Command,
    Decided,
    Decision,
    Event,
    Expansion,
    Failed,
    HeadKnown,
    Observation,
    Place,
    Prompt,
    Returned,
    Role,
    RolloutTree,
    RunCalls,
    SampleTurn,
    StepStats,
    StopReason,
    Tip,
    ToolCallResult,
    Turn,
    TurnEnded,
)
from arpo.core.expansion import Leftover

VOCAB = 1000
HEAD = 4


def floats(values) -> array:
    return array("f", values)


@dataclass(frozen=True)
class World:
    """`fails`: probability that a request fails (before any token, or while tools run); `go_on`: that a turn calls a
    tool."""

    seed: int
    go_on: float = 0.7
    deepest: int = 4
    fails: float = 0.0
    cut: float = 0.0  # probability that an observation does not fit
    interval: bool = False  # entropies come with bounds

    def random(self, place: Place, what: str, attempt: int = 0) -> Random:
        return Random(f"{self.seed}/{place}/{what}/{attempt}")

    def turn_fails(self, place: Place, attempt: int) -> bool:
        return self.random(place, "turn", attempt).random() < self.fails

    def calls_fail(self, place: Place, attempt: int) -> bool:
        return self.random(place, "calls", attempt).random() < self.fails

    def turn(self, place: Place, role: Role, attempt: int = 0) -> Turn:
        random = self.random(place, "tokens", attempt)
        length = random.randint(1, 8)
        entropies = floats(round(random.uniform(0, 3), 1) for _ in range(length))
        goes_on = len(place) <= self.deepest and random.random() < self.go_on
        calls = (Call(name="search", arguments={"q": str(place)}),) if goes_on else ()
        bounds = (floats(h * 0.8 for h in entropies), floats(h * 1.2 for h in entropies)) if self.interval else None
        return Turn(
            place=place,
            role=role,
            tokens=array("i", (random.randrange(VOCAB) for _ in range(length))),
            logprobs=floats(-random.random() for _ in range(length)),
            entropies=entropies,
            bounds=bounds,
            versions=((0, length),),
            calls=calls,
        )

    def returned(self, place: Place) -> Returned:
        random = self.random(place, "result")
        tokens = array("i", (random.randrange(VOCAB) for _ in range(random.randint(1, 6))))
        outcomes = (ToolCallResult(tool="search", status=CallStatus.OK, text=f"result of {place}"),)
        cut = StopReason.BRANCH_LENGTH if random.random() < self.cut else None
        return Returned(Observation(place=place, tokens=tokens, outcomes=outcomes), cut)


@dataclass
class Drive:
    """Feeds an expansion in an order drawn from `timing`; keeps every command and event."""

    expansion: Expansion
    world: World
    timing: Random
    early_heads: float = 0.7  # probability that a probe's head is reported before its end
    commands: list[Command] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    pending: list[SampleTurn | RunCalls] = field(default_factory=list)
    heads_sent: set[tuple[Place, int]] = field(default_factory=set)

    def run(self) -> Expansion:
        self._obey(self.expansion.start())
        while self.pending:
            self.step()
        return self.expansion

    def step(self) -> None:
        number = self.timing.randrange(len(self.pending))
        command = self.pending[number]
        event = self._answer(command)
        if not isinstance(event, HeadKnown):
            del self.pending[number]
        self.events.append(event)
        self._obey(self.expansion.feed(event))

    def _answer(self, command: SampleTurn | RunCalls) -> Event:
        place, attempt = command.place, command.attempt
        if isinstance(command, RunCalls):
            return (
                Failed(place, StopReason.TOOL_FAILED)
                if self.world.calls_fail(place, attempt)
                else self.world.returned(place)
            )
        if self.world.turn_fails(place, attempt):
            return Failed(place, StopReason.ENGINE_FAILED)
        turn = self.world.turn(place, command.role, attempt)
        if (
            command.role is Role.PROBE
            and (place, attempt) not in self.heads_sent
            and self.timing.random() < self.early_heads
        ):
            self.heads_sent.add((place, attempt))
            bounds = turn.bounds and (turn.bounds[0][:HEAD], turn.bounds[1][:HEAD])
            return HeadKnown(place, turn.entropies[:HEAD], bounds)
        return TurnEnded(turn, None if turn.calls else StopReason.FINISHED)

    def _obey(self, commands: list[Command]) -> None:
        self.commands += commands
        self.pending += [command for command in commands if not isinstance(command, Decided)]


@dataclass(frozen=True)
class Whim:
    """A rule whose wants and scores are drawn by place, with ties, up to a most that differs by depth."""

    seed: int
    mosts: tuple[int, ...] = (2, 1, 3, 0, 2)

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        draw = Random(f"{self.seed}/{tip.place}/whim")
        return Decision(wanted=draw.randint(0, self.most(tip.depth)), score=float(draw.randint(0, 3)))

    def most(self, depth: int) -> int:
        return self.mosts[depth - 1] if depth <= len(self.mosts) else 0


def expansion(
    *,
    rule: BranchRule,
    leaves: int = 8,
    roots=3,
    seed: int = 0,
    task: str = "task",
    root_cap: int | None = None,
    deepest: int = 256,
    retries: int = 1,
    leftover: Leftover = "prompt",
    stats: StepStats | None = None,
    head: int = HEAD,
) -> Expansion:
    stats = stats or StepStats(step=3)
    return Expansion(
        RolloutTree(task, stats.step, Prompt(tokens=array("i", [1, 2, 3]))),
        leaves=leaves,
        roots=roots,
        rule=rule,
        head=head,
        vocab_size=VOCAB,
        stats=stats,
        seed=seed,
        root_cap=root_cap,
        deepest=deepest,
        retries=retries,
        leftover=leftover,
    )


def grow(world: World, timing: int | Random = 0, **values) -> Expansion:
    return Drive(expansion(**values), world, timing if isinstance(timing, Random) else Random(timing)).run()
