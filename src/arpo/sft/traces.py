"""From traces to trees, segment by segment, exactly as a rollout would have written them.

Calls of a trace run against the real tools unless the trace brings its results, so a cold start sees what training will
see. Only turns are trained on: results are observations. Knows traces, chat formats and tools. Refuses to know
learners.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from arpo.chat import ChatFormat
from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.place import Place, keyed
from arpo.core.score import Score
from arpo.core.tree import CallStatus, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult, Turn
from arpo.errors import CarryError, FormatError
from arpo.files import expanded
from arpo.import_path import import_from_path, is_import_path
from arpo.recipe.train import COLD_START_SEED, ColdStartConfig
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.states import ToolStates
from arpo.rollout.tree_rollout import begun
from arpo.tasks import atlas
from arpo.tasks.data import DataConfig
from arpo.tasks.traces import RecordedStep, Trace, load_traces
from arpo.tools import CallContext, ToolBase
from arpo.tools.gateway import ToolGateway


def read_traces(config: ColdStartConfig, data: DataConfig) -> list[Trace]:
    """The traces that a recipe names, in a seeded order. A function is called with `limit`, `seed` and the options of
    the training data. Raises ConfigError, FormatError."""
    if config.traces == "atlas":
        return atlas.traces(
            "train",
            limit=config.num_traces,
            seed=COLD_START_SEED,
            families=data.options.get("families") if data.source == "atlas" else None,
        )
    if is_import_path(config.traces):
        function = import_from_path(config.traces, "cold_start.traces")
        return list(function(limit=config.num_traces, seed=COLD_START_SEED, **data.options))
    traces = load_traces(expanded(config.traces))
    Random(f"{COLD_START_SEED}/traces").shuffle(traces)
    return traces[: config.num_traces]


async def traces_to_trees(
    agent: Agent,
    traces: Sequence[Trace],
    rollout: RolloutConfig,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> list[CreditedTree]:
    """The traces as trees with credit 1 on every turn. Those with a turn that the model's syntax cannot carry are left
    out, and `tell` is called with their number. Raises FormatError where no trace is left, and as `trace_to_tree` does.
    """
    if not traces:
        raise FormatError("there is no trace to learn from")
    trees, refused = [], []
    for trace in traces:
        try:
            trees.append(with_credit(await trace_to_tree(agent, trace, rollout, seed)))
        except CarryError as error:
            refused.append(f"trace {trace.task.id}: {error}")
    if not trees:
        raise FormatError(refused[0])
    if refused:
        tell(f"{len(refused)} of {len(traces)} traces are left out, the first for this reason: {refused[0]}")
    return trees


async def trace_to_tree(agent: Agent, trace: Trace, config: RolloutConfig, seed: int) -> RolloutTree:
    """The one-branch tree that a policy which follows `trace` would have grown.

    Raises FormatError where a rollout would not allow it: the format cannot read a call back, there are more calls or
    tokens than `config` allows, or the last step calls a tool.
    """
    async with begun(agent, trace.task, config, step="trace", seed=seed) as states:
        trace = replace(trace, task=states.task)
        chat, tools = agent.chat(trace.task)
        tree = await _to_tree(chat, tools, agent.tool_gateway, states, trace, config, seed)
    await states.close()
    return tree


async def _to_tree(
    chat: ChatFormat,
    tools: Sequence[ToolBase],
    tool_gateway: ToolGateway,
    states: ToolStates,
    trace: Trace,
    config: RolloutConfig,
    seed: int,
) -> RolloutTree:
    tree = RolloutTree(trace.task.id, "trace", Prompt(tokens=chat.render(trace.task, tools)))
    place: Place = (0,)
    calls_left = config.max_calls
    for number, step in enumerate(steps_for(chat, tools, trace.steps), 1):
        written = chat.write(step, config.max_calls - calls_left)
        tokens = chat.encode_turn(written)
        calls = chat.parse(tokens).calls
        if [(c.name, dict(c.arguments), c.error) for c in calls] != [
            (c.name, dict(c.arguments), "") for c in step.calls
        ]:
            raise FormatError(f"trace {trace.task.id}, step {number}: {written!r} reads back as {calls!r}")
        zeros = array("f", bytes(4 * len(tokens)))
        role = Role.ROOT if len(place) == 1 else Role.PROBE
        turn = Turn(place=place, role=role, tokens=tokens, logprobs=zeros, entropies=zeros, calls=calls)
        tree.grow(turn)
        if not calls:
            break
        calls_left -= len(calls)
        if calls_left < 0:
            raise _beyond(trace, "calls", config.max_calls - calls_left, "max_calls", config.max_calls)
        outcomes = await _outcomes(trace, step, tools, tool_gateway, states, config, seed, place)
        shown_limit = max(0, calls_left) if config.at_call_limit == "tell" else None
        observed, results = chat.observe(turn, outcomes, shown_limit)
        tree.grow(Observation(place=place, tokens=observed, outcomes=results))
        place = (*place, 0)
    if place in tree.observations or place not in tree.turns:
        raise FormatError(f"trace {trace.task.id} ends with a call: its last step needs an answer")
    tree.end(place, StopReason.FINISHED)
    longest, whole = max(len(turn.tokens) for turn in tree.turns.values()), sum(len(s.tokens) for s in tree.path(place))
    if longest > config.turn_tokens:
        raise _beyond(trace, "tokens in a turn", longest, "turn_tokens", config.turn_tokens)
    if whole > config.branch_tokens:
        raise _beyond(trace, "tokens in all", whole, "branch_tokens", config.branch_tokens)
    return tree


def steps_for(chat: ChatFormat, tools: Sequence[ToolBase], steps: Sequence[RecordedStep]) -> Iterator[RecordedStep]:
    """`steps` as the format and the tools take them: parallel calls one after another where a turn makes one call
    (`chat.one_call`), and without null arguments, which Arrow adds, unless the schema requires them."""
    required = {tool.name: tool.schema.get("required", ()) for tool in tools}
    for step in steps:
        calls = tuple(
            replace(
                call,
                arguments={
                    name: value
                    for name, value in call.arguments.items()
                    if value is not None or name in required.get(call.name, ())
                },
            )
            for call in step.calls
        )
        if len(calls) < 2 or not getattr(chat, "one_call", False):
            yield replace(step, calls=calls)
            continue
        for at, call in enumerate(calls):
            thought, said = (step.thought, step.text) if at == 0 else ("", "")
            yield RecordedStep(thought, (call,), None, step.results[at : at + 1], said)


def _beyond(trace: Trace, what: str, number: int, key: str, limit: int) -> FormatError:
    return FormatError(
        f"trace {trace.task.id} has {number} {what}, and rollout.{key} is {limit}: raise it or leave the trace out"
    )


async def _outcomes(
    trace: Trace,
    step: RecordedStep,
    tools: Sequence[ToolBase],
    tool_gateway: ToolGateway,
    states: ToolStates,
    config: RolloutConfig,
    seed: int,
    place: Place,
) -> list[ToolCallResult]:
    if step.results:
        return [
            ToolCallResult(tool=c.name, status=CallStatus.OK, text=text)
            for c, text in zip(step.calls, step.results, strict=True)
        ]
    random = keyed(seed, "trace", trace.task.id, place, "call")
    state = await states.at(place) if states.tools else {}
    if states.episodes is not None:
        await states.episodes.begin_turn(state[states.episodes.name], place)
    outcomes = []
    for call in step.calls:  # one after another: calls of one turn may share a tool's state
        context = CallContext(
            task=trace.task,
            deadline_s=config.deadline_s,
            seed=random.getrandbits(63),
            state=state.get(states.holder(call.name)),
        )
        outcomes.append(await tool_gateway.call({tool.name: tool for tool in tools}, call, context))
    return outcomes


def with_credit(tree: RolloutTree) -> CreditedTree:
    """The tree with credit 1 on every turn: supervised training maximises the log-probability itself."""
    leaf = tree.leaves()[0]
    score = ScoredTree(tree, {leaf: Score(reward=1.0, accuracy=1.0)})
    credit = {(turn.place, leaf): 1.0 for turn in tree.branch(leaf).turns}
    return CreditedTree(score, {leaf: 1.0}, credit)
