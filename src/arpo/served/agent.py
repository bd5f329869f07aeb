"""The agent of a served model: rollouts of text, with the tools, limits and retries of any other rollout."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arpo.core.branching import Never, StepStats
from arpo.core.expansion import Expansion, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.place import Place, keyed
from arpo.core.tree import FinishReason, Observation, Prompt, RolloutTree, StopReason, ToolCallResult, Turn
from arpo.endpoint.client import Endpoint, Spent
from arpo.environments.episodes import EnvironmentSource
from arpo.errors import ToolError
from arpo.rollout.config import RolloutConfig
from arpo.rollout.driver import RolloutDriver
from arpo.rollout.states import ToolStates
from arpo.rollout.task_rollout import TaskRollout
from arpo.rollout.tree_rollout import begun, check_room, tools_for
from arpo.rollout.watching import TextWritten, Watch
from arpo.served import Context, Dialogue, Sampling, ServedTurn
from arpo.tasks import Task
from arpo.tools import Tool, ToolBase
from arpo.tools.gateway import ToolGateway

NO_VOCABULARY = 2  # the least that an expansion takes: a served model's own is not known, nor are entropies


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAgent:
    """dialogue: makes the dialogue for a set of tools."""

    endpoint: Endpoint
    tools: tuple[ToolBase, ...]
    dialogue: Callable[[Sequence[Tool]], Dialogue[Any]]
    tool_gateway: ToolGateway = field(default_factory=ToolGateway)
    environment: EnvironmentSource | None = None

    def num_prompt_tokens(self, task: Task) -> int:
        tools = tools_for(self.tools, task)
        return int(self.dialogue(tools).begin(task, tools).num_tokens)

    async def rollout(
        self, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int, watch: Watch | None = None
    ) -> "ServedRollout":
        """As `Agent.rollout`, without branches. Raises ToolsStoppedError where the endpoint answers nobody: key,
        budget, outage."""
        async with begun(self, task, config, step=stats.step, seed=seed) as states:
            task, tools = states.task, tuple(states.offered.values())
            dialogue = self.dialogue(tools)
            context = dialogue.begin(task, tools)
            check_room(task, context.num_tokens, config)
        expansion = Expansion(
            RolloutTree(task.id, stats.step, Prompt(tokens=array("i"))),
            leaves=config.leaves,
            roots=config.leaves,
            rule=Never(),
            head=config.head,
            vocab_size=NO_VOCABULARY,
            stats=stats,
            seed=seed,
            root_cap=config.root_cap,
            retries=config.retries,
            deepest=config.max_calls,
            leftover=config.leftover,
        )
        return await ServedDriver(self, config, states, expansion, dialogue, context, watch).run()

    @property
    def spent(self) -> Spent:
        """All that went to the endpoint, as it counts."""
        return self.endpoint.spent

    async def close(self) -> None:
        await self.endpoint.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRollout(TaskRollout):
    """A tree whose turns hold no tokens: their text and counts stand beside it."""

    prompt: str
    turns: Mapping[Place, ServedTurn[Any]]
    observations: Mapping[Place, str]

    def prompt_text(self) -> str:
        return self.prompt

    def turn_text(self, place: Place) -> str:
        return self.turns[place].parsed.text

    def observation_text(self, place: Place) -> str:
        return self.observations[place]

    def num_read(self, place: Place) -> int:
        return self.turns[place].usage.prompt_tokens

    def num_written(self, place: Place) -> int:
        return self.turns[place].usage.completion_tokens

    def money(self, place: Place) -> float:
        return self.turns[place].usage.money


class ServedDriver(RolloutDriver):
    """Asks the endpoint for what an expansion wants sampled."""

    def __init__(
        self,
        agent: ServedAgent,
        config: RolloutConfig,
        states: ToolStates,
        expansion: Expansion,
        dialogue: Dialogue[Any],
        context: Context,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(config, agent.tool_gateway, states, expansion, watch)
        self.endpoint, self.dialogue = agent.endpoint, dialogue
        self.contexts: dict[Place, Context] = {(): context}  # by tip
        self.turns: dict[Place, ServedTurn[Any]] = {}
        self.observations: dict[Place, str] = {}

    async def run(self) -> ServedRollout:
        await self.carry_out()
        prompt = self.dialogue.text(self.contexts[()])
        return ServedRollout(**self.outcome(), prompt=prompt, turns=self.turns, observations=self.observations)

    async def sample(self, command: SampleTurn) -> None:
        place, context = command.place, self.contexts[command.place[:-1]]
        room = self.config.branch_tokens - context.num_tokens
        try:
            turn = await self.dialogue.ask(self.endpoint, context, self._sampling(command, room))
        except ToolError as error:  # ProviderError too
            self.fail(place, StopReason.ENGINE_FAILED, error)
            return
        self.turns[place], self.parsed[place] = turn, turn.parsed
        if self.watch is not None:
            self.watch(TextWritten(place, turn.parsed.text, command.attempt))
        calls = turn.parsed.calls if turn.finish is FinishReason.STOP else ()
        nothing = array("f")
        written = Turn(
            place=place,
            role=command.role,
            tokens=array("i"),
            logprobs=nothing,
            entropies=nothing,
            finish=turn.finish,
            calls=calls,
        )
        self.feed(TurnEnded(written, self.ending(written, turn.usage.completion_tokens, room)))

    def observe(
        self, command: RunCalls, results: Sequence[ToolCallResult], calls_left: int | None, message: str | None
    ) -> Returned:
        place = command.place
        context, text, seen = self.dialogue.observe(self.turns[place], results, calls_left, message)
        self.contexts[place], self.observations[place] = context, text
        full = context.num_tokens >= self.config.branch_tokens
        observation = Observation(place=place, tokens=array("i"), outcomes=seen)
        return Returned(observation, StopReason.BRANCH_LENGTH if full else None)

    def read_text(self, observation: Observation) -> str:
        return self.observations[observation.place]

    def _sampling(self, command: SampleTurn, room: int) -> Sampling:
        random = keyed(
            self.expansion.config.seed, self.tree.step, self.task.id, command.place, "sample", command.attempt
        )
        return Sampling(
            max_tokens=min(self.config.turn_tokens, room),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=random.getrandbits(63),
        )
