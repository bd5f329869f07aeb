"""Trees for benchmarks: grown by the real expansion in a world whose turns and results are drawn at each place."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from arpo.core import (
    Call,
    CallStatus,
    Event,
    Expansion,
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
    ToolCallResult,
    Turn,
    TurnEnded,
)
from arpo.core.branching import Paper
from arpo.core.credit import ScoredTree
from arpo.core.expansion import ExpansionConfig
from arpo.core.score import Score

HEAD = 10
CALL = Call(name="search", arguments={"query": "the same every time"})
OUTCOME = ToolCallResult(tool="search", status=CallStatus.OK, text="")


@dataclass(frozen=True, slots=True)
class Lengths:
    """From which lengths in tokens are drawn. `calls`: the most a line makes."""

    prompt: Sequence[int]
    turn: Sequence[int]
    observation: Sequence[int]
    calls: int
    vocab_size: int = 49_152


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree with the events that grew it."""

    config: ExpansionConfig
    scored: ScoredTree
    events: tuple[Event, ...]

    def afresh(self) -> Expansion:
        """A fresh expansion of the same prompt."""
        tree = self.scored.tree
        return Expansion.from_config(RolloutTree(tree.task, tree.step, tree.prompt), self.config)


def grow(seed: int, lengths: Lengths, *, leaves: int, roots: int) -> Grown:
    """A finished tree, its events in an order as tools and turns might finish, and rewards of 0 and 1 drawn by leaf."""
    world = _World(Random(f"grown/{seed}"), lengths)
    config = ExpansionConfig(
        leaves=leaves,
        roots=roots,
        rule=Paper(),
        head=HEAD,
        vocab_size=lengths.vocab_size,
        stats=StepStats(step=1),
        seed=seed,
    )
    prompt = Prompt(tokens=world.tokens(lengths.prompt))
    expansion = Expansion.from_config(RolloutTree(f"task-{seed}", 1, prompt), config)
    pending = _to_do(expansion.start())
    while pending:
        command = pending.pop(world.random.randrange(len(pending)))
        for event in world.answer(command):
            pending += _to_do(expansion.feed(event))
    scores = {leaf: Score(reward=float(world.random.random() < 0.5), accuracy=0.0) for leaf in expansion.tree.leaves()}
    return Grown(config, ScoredTree(expansion.tree, scores), tuple(expansion.events))


def _to_do(commands: Sequence[object]) -> list[SampleTurn | RunCalls]:
    return [command for command in commands if isinstance(command, SampleTurn | RunCalls)]


@dataclass(frozen=True, slots=True)
class _World:
    random: Random
    lengths: Lengths

    def tokens(self, lengths: Sequence[int]) -> "array[int]":
        return array("i", (self.random.randrange(self.lengths.vocab_size) for _ in range(self.random.choice(lengths))))

    def answer(self, command: SampleTurn | RunCalls) -> list[Event]:
        if isinstance(command, RunCalls):
            found = Observation(place=command.place, tokens=self.tokens(self.lengths.observation), outcomes=(OUTCOME,))
            return [Returned(found, None)]
        turn = self._turn(command.place, command.role)
        head: list[Event] = [HeadKnown(turn.place, turn.entropies[:HEAD])] if command.role is Role.PROBE else []
        return [*head, TurnEnded(turn, None if turn.calls else StopReason.FINISHED)]

    def _turn(self, place: Place, role: Role) -> Turn:
        tokens = self.tokens(self.lengths.turn)
        goes_on = len(place) <= self.lengths.calls and (len(place) == 1 or self.random.random() < 0.7)
        return Turn(
            place=place,
            role=role,
            tokens=tokens,
            logprobs=array("f", (-self.random.expovariate(2) for _ in tokens)),
            entropies=array("f", (self.random.expovariate(2) for _ in tokens)),
            versions=((0, len(tokens)),),
            calls=(CALL,) if goes_on else (),
        )
