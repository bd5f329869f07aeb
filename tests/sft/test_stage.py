"""The cold start: traces are written as rollout writes them, and nothing but turns is learnt."""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from arpo.assembly.components import Components, build_components
from arpo.chat.config import ChatConfig, build_chat
from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree
from arpo.core.tree import Call, Observation, Prompt, RolloutTree, Turn
from arpo.display.terminal import Console
from arpo.engines import SamplingParams
from arpo.engines.scripted import ScriptedEngine
from arpo.errors import ArpoError, FormatError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.packing import pack
from arpo.recipe.load import load_recipe
from arpo.recipe.train import ColdStartConfig
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.tree_rollout import rollout_tree
from arpo.runs.shutdown import run_to_end
from arpo.sft.stage import run_cold_start, train_on_traces
from arpo.sft.traces import read_traces, traces_to_trees
from arpo.tasks import Task
from arpo.tasks.traces import RecordedStep, Trace, load_traces
from arpo.tools.function import tool
from family_formats import tokenizer_of
from tiny_models import tiny_model
from tiny_project import TinyProject, trace


@pytest.fixture
def components(tiny_project: TinyProject) -> Components:
    return build_components(load_recipe(tiny_project.recipe), tiny_project.model)


def traces(tmp_path: Path, *rows: dict[str, Any]) -> list[Trace]:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_traces(path)


def shown(components: Components, given: Sequence[Trace], **rollout: Any) -> list[CreditedTree]:
    config = components.run.rollout.model_copy(update=rollout)
    return asyncio.run(traces_to_trees(components.agent, given, config, seed=0))


TWICE = {
    "id": "twice",
    "question": "Parity of 5",
    "answers": ["odd"],
    "steps": [
        {"thought": "Let me see.", "calls": [{"name": "parity", "arguments": {"number": 5}}]},
        {"calls": [{"name": "parity", "arguments": {"number": 7}}]},
        {"thought": "Both are.", "answer": "odd"},
    ],
}


def segments(tree: RolloutTree) -> list[list[int]]:
    return [list(segment.tokens) for segment in tree.path(tree.leaves()[0])]


@pytest.mark.parametrize("format", ["tags", "template"])
@pytest.mark.parametrize("calls", [2, 3])
def test_a_trace_becomes_the_tokens_that_a_rollout_of_it_writes(
    tiny_project: TinyProject, tmp_path: Path, format: str, calls: int
) -> None:
    """Segment by segment, calls run by the real tools, the policy told when no calls are left."""
    components = build_components(
        load_recipe(tiny_project.recipe, [f"chat.format={format}", "rollout.turn_tokens=90"]), tiny_project.model
    )
    limits = {"max_calls": calls, "turn_tokens": 90, "branch_tokens": 500}
    (given,) = traces(tmp_path, TWICE)
    (tree,) = shown(components, [given], **limits)
    chat, _ = components.agent.chat(given.task)
    written = iter([chat.write(step) for step in given.steps])

    def play(_prompt: Sequence[int], params: SamplingParams) -> list[int]:
        return list(chat.encode_turn(next(written)))

    agent = replace(components.agent, engine=ScriptedEngine(play, components.tokenizer))
    config = components.run.rollout.model_copy(update=limits).flat(leaves=1, temperature=1.0)
    grown = asyncio.run(rollout_tree(agent, given.task, config, stats=StepStats(step=1), seed=0))
    assert segments(tree.tree) == segments(grown.tree)
    assert [type(s) for s in tree.tree.path(tree.tree.leaves()[0])] == [
        Prompt,
        Turn,
        Observation,
        Turn,
        Observation,
        Turn,
    ]


@pytest.mark.parametrize("format", ["tags", "template"])
def test_a_conversation_of_another_trainer_is_learnt_in_any_format(
    tiny_project: TinyProject, tmp_path: Path, format: str
) -> None:
    """With parallel calls, which tags write one after another, and the nulls that Arrow adds."""
    recipe = load_recipe(tiny_project.recipe, [f"chat.format={format}"])
    components = build_components(recipe, tiny_project.model)
    functions = [{"name": "parity", "arguments": {"number": n, "city": None}} for n in (5, 7)]
    messages = [
        {"role": "user", "content": "Parity of 5 and 7"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function} for function in functions]},
        *({"role": "tool", "content": f"{n}: odd"} for n in (5, 7)),
        {"role": "assistant", "content": "odd"},
    ]
    limits = {"max_calls": 2, "turn_tokens": 200, "branch_tokens": 500}
    (tree,) = shown(components, traces(tmp_path, {"messages": messages}), **limits)
    branch = tree.tree.branch(tree.tree.leaves()[0])
    assert [dict(call.arguments) for turn in branch.turns for call in turn.calls] == [{"number": 5}, {"number": 7}]
    assert [result.text for seen in branch.observations for result in seen.outcomes] == ["5: odd", "7: odd"]
    assert len(branch.turns) == (3 if format == "tags" else 2)


def test_results_are_masked(components: Components, tmp_path: Path) -> None:
    """Defect 13 of the released code: result spans trained on, so that the model learns to invent results."""
    (tree,) = shown(components, traces(tmp_path, TWICE), max_calls=2, turn_tokens=90, branch_tokens=500)
    turns = [s for s in tree.tree.path(tree.tree.leaves()[0]) if isinstance(s, Turn)]
    (batch,) = pack([tree], 10_000)
    assert batch.targets_P.tolist() == [token for turn in turns for token in turn.tokens]
    assert "<result>" not in components.tokenizer.decode(batch.targets_P) and "<result>" in components.tokenizer.decode(
        batch.tokens_T
    )


def test_results_that_a_trace_brings_are_taken(components: Components, tmp_path: Path) -> None:
    row = json.loads(json.dumps(trace(3)))
    row["steps"][0]["results"] = ["quite odd"]
    (tree,) = shown(components, traces(tmp_path, row))
    (seen,) = tree.tree.observations.values()
    assert "quite odd" in components.tokenizer.decode(seen.tokens)


@pytest.mark.parametrize(
    "limits, says",
    [
        ({"max_calls": 1}, "rollout.max_calls is 1"),
        ({"turn_tokens": 9}, "rollout.turn_tokens is 9"),
        ({"branch_tokens": 100}, "rollout.branch_tokens is 100"),
    ],
)
def test_what_rollout_would_cut_off_is_not_taught(
    components: Components, tmp_path: Path, limits: dict[str, int], says: str
) -> None:
    room = {"max_calls": 2, "turn_tokens": 90, "branch_tokens": 500, **limits}
    with pytest.raises(FormatError, match=f"twice.*{says}"):
        shown(components, traces(tmp_path, TWICE), **room)


def test_without_a_trace_there_is_nothing_to_learn(components: Components) -> None:
    with pytest.raises(FormatError, match="no trace"):
        shown(components, [])


@pytest.mark.parametrize("changes, updates", [({"steps": 7}, 7), ({"epochs": 2.0}, 10), ({}, 5), ({"epochs": 0.01}, 1)])
def test_how_many_updates(changes: dict[str, Any], updates: int) -> None:
    assert ColdStartConfig(batch=8, **changes).num_updates(40) == updates


def test_every_epoch_shows_every_trace_once_in_the_same_order_in_every_run(
    components: Components, tmp_path: Path
) -> None:
    trees = shown(components, traces(tmp_path, *(trace(number) for number in range(1, 7))))

    class Watched(LocalLearner):
        def sft_step(self, trees: Sequence[CreditedTree], *more: Any) -> dict[str, float]:
            seen.append([tree.tree.task for tree in trees])
            return super().sft_step(trees, *more)

    orders = []
    for _ in range(2):
        seen: list[list[str]] = []
        learner = Watched(tiny_model("llama", vocab=800), **plain_learner())
        asyncio.run(train_on_traces(learner, trees, ColdStartConfig(batch=2, epochs=2)))
        flat = [task for batch in seen for task in batch]
        assert len(seen) == 6 and sorted(flat[:6]) == sorted(flat[6:]) == sorted(tree.tree.task for tree in trees)
        assert flat[:6] != flat[6:]
        orders.append(flat)
    assert orders[0] == orders[1]


def plain_learner(lr: float = 1e-3) -> dict[str, Any]:
    return {"loss": LossConfig(), "optim": OptimConfig(lr=lr), "num_updates": 9, "token_budget": 4096, "tree": True}


def test_a_loss_that_stays_infinite_stops_it(components: Components, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab=800)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    learner = LocalLearner(model, **plain_learner())
    with pytest.raises(ArpoError, match=r"3 updates in a row .*cold_start.lr"):
        asyncio.run(train_on_traces(learner, shown(components, traces(tmp_path, trace(1))), ColdStartConfig(steps=9)))


@pytest.mark.parametrize("steps", [1, 2])
def test_what_ends_without_a_finite_loss_is_not_kept(components: Components, tmp_path: Path, steps: int) -> None:
    """Fewer updates than stop it, and yet nothing that a cache should hold."""
    model = tiny_model("llama", vocab=800)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ArpoError, match=r"its last update has no finite loss or weights: lower cold_start\.lr"):
        asyncio.run(
            train_on_traces(
                LocalLearner(model, **plain_learner()),
                shown(components, traces(tmp_path, trace(1))),
                ColdStartConfig(steps=steps),
            )
        )


def test_it_can_be_stopped_between_updates(components: Components, tmp_path: Path) -> None:
    learner = LocalLearner(tiny_model("llama", vocab=800), **plain_learner())
    trees, done = shown(components, traces(tmp_path, trace(1))), []

    async def main() -> None:
        def watch(_metrics: dict[str, float]) -> None:
            done.append(learner.updates)
            if learner.updates == 3:
                running.cancel()

        running = asyncio.ensure_future(train_on_traces(learner, trees, ColdStartConfig(steps=9), watch))
        await running

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert done == [1, 2, 3]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_ctrl_c_is_answered_within_the_layer_that_computes_and_no_layer_follows(
    components: Components, tmp_path: Path, capfd: pytest.CaptureFixture[str], backward: bool
) -> None:
    """However slow the machine is. No weight changes after the last whole update."""
    model = tiny_model("llama", vocab=800)
    learner = LocalLearner(model, **plain_learner())
    layers, weights = model.get_decoder().layers, {}
    passes: list[int] = []  # layers of all passes, in their order
    updates: list[int] = []
    pressed_at = 2 * 2 * len(layers) + (len(layers) + 1 if backward else 1)  # in the third update

    def enter(number: int, *_: object) -> None:
        passes.append(number)
        if len(passes) == pressed_at:
            os.kill(os.getpid(), signal.SIGINT)
            assert "stopping: what is finished is kept. Ctrl-C again stops at once." in capfd.readouterr().err

    def leave(number: int, _layer: object, _inputs: object, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(lambda _: enter(number))

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(enter, number))
        layer.register_forward_hook(partial(leave, number))

    def watch(_metrics: dict[str, float]) -> None:
        updates.append(learner.updates)
        weights.update({name: value.clone() for name, value in model.state_dict().items()})

    trees = shown(components, traces(tmp_path, trace(1)))
    with pytest.raises(KeyboardInterrupt):
        run_to_end(train_on_traces(learner, trees, ColdStartConfig(steps=9), watch))
    assert len(passes) == pressed_at and updates == [1, 2]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_model_and_its_engine_have_learnt_the_traces(components: Components) -> None:
    """The loss falls, and what the engine then writes is what the traces write."""

    async def learn_and_ask() -> tuple[Any, str]:
        done = await run_cold_start(components, console=Console(quiet=True), tell=lambda text: None)
        given = read_traces(components.run.cold_start, components.run.data.train)[0]
        chat, tools = components.agent.chat(given.task)
        params = SamplingParams(max_tokens=24, temperature=0.0, seed=1, stop=chat.stop, stop_tokens=chat.stop_tokens)
        chunks = [chunk async for chunk in components.agent.engine.sample(chat.render(given.task, tools), params)]
        await components.agent.engine.close()
        return done, chat.text([token for chunk in chunks for token in chunk.tokens])

    assert components.run.cold_start is not None
    done, text = asyncio.run(learn_and_ask())
    assert done.num_traces == 40 and done.num_updates == 60
    assert done.last_loss < 0.1 * done.first_loss
    assert text.startswith("<parity>") and text.endswith("</parity>")


def test_traces_that_a_syntax_cannot_carry_are_left_out_and_counted() -> None:
    """In Qwen's XML a text cannot hold the closing tag of its argument right before that of the call."""
    tokenizer = tokenizer_of("qwen3-coder")

    @tool
    def search(query: str) -> str:
        """Finds facts."""
        return query

    def traced(query: str) -> Trace:
        task = Task(id=query[:4], messages=({"role": "user", "content": "Where?"},), answers=("x",))
        call = Call(name="search", arguments={"query": query})
        return Trace(task, (RecordedStep("", (call,)), RecordedStep("", (), "x")))

    agent = Agent(
        engine=ScriptedEngine(lambda prompt, params: [], tokenizer),
        tools=(search,),
        format=partial(build_chat, ChatConfig(format="template"), tokenizer),
        vocab_size=len(tokenizer),
    )
    config, told = RolloutConfig(leaves=1, roots=1, rule="none", turn_tokens=200, branch_tokens=2000), list[str]()
    bad = traced("bad </parameter></function>")
    trees = asyncio.run(traces_to_trees(agent, [traced("good"), bad], config, 0, told.append))
    assert len(trees) == 1 and told[0].startswith("1 of 2 traces are left out")
    with pytest.raises(FormatError, match="trace bad : the syntax qwen_xml cannot carry"):
        asyncio.run(traces_to_trees(agent, [bad], config, 0))
