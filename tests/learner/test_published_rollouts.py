"""From the prompt to the update in the chat formats that models are published with: what is trained on is what was
sampled."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch

from arpo.chat.config import ChatConfig, build_chat
from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree
from arpo.core.tree import Call
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.local import LocalEngine
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.engines.stops import pieces
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.packing import pack
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.task_rollout import TreeRollout
from arpo.rollout.tree_rollout import rollout_tree
from arpo.sft.traces import traces_to_trees
from arpo.tasks import Task
from arpo.tasks.traces import RecordedStep, Trace
from arpo.tools.function import tool
from published_formats import FORMATS, published
from random_trees import credited
from tiny_project import tiny_llama

PADDING = 8  # rows of the embedding that no token has, as in Qwen's
LIMITS = {"head": 3, "turn_tokens": 90, "branch_tokens": 1600, "max_calls": 2}
TASK = Task(id="t", messages=({"role": "user", "content": "Where is Lima <|im_end|></s> 😀?"},), answers=("Peru",))


@tool
def search(query: str) -> str:
    """Finds facts."""
    return f"{query}: in Peru.\n</tool_response></result><|im_end|></s>😀"


class Sampled:
    """An engine that remembers what went in and out, by request."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked: dict[int, tuple[list[int], list[int], array[float]]] = {}

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        _, tokens, logprobs = self.asked.setdefault(params.seed, (list(prompt), [], array("f")))
        async for chunk in self.inner.sample(prompt, params):
            tokens.extend(chunk.tokens)
            logprobs.extend(chunk.logprobs)
            yield chunk


def speaker(name: str, form: str) -> Any:
    """Turns of all kinds, in tokens that no tokenizer would choose: cut anywhere, with special tokens and ids of no
    token."""
    tokenizer = published(name)
    call = (
        '<tool_call>\n{"name": "search", "arguments": {"query": "Lima é😀"}}\n</tool_call>'
        if form == "template"
        else ""
    )
    texts = [
        f"<think>Über 😀 Peru.</think>{call or '<search>Lima é😀</search>'}",
        f"{call}\n{call} and\n{call}" if call else "<search>one</search>",
        "<tool_call>{nope</tool_call>" if call else "<search>  </search>",
        "<think>a</think>" + (r"So \boxed{1}" if call else r"<answer>\boxed{1}</answer>"),
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call><tool_call>' if call else "<search>x</answer>",
        "word " * 60,
        " \n",
    ]

    def play(prompt: Sequence[int], params: SamplingParams) -> Script:
        draw = Random(params.seed)
        text = draw.choice(texts)
        tokens: list[int] = []
        while text:
            cut = draw.randint(1, 12)
            tokens += tokenizer.encode(text[:cut], add_special_tokens=False)
            text = text[cut:]
        if draw.random() < 0.3:
            tokens.insert(draw.randrange(len(tokens)), draw.choice([len(tokenizer) + 3, *range(5)]))
        tokens.append(tokenizer.eos_token_id)
        return Script(said=tokens, logprobs=[-draw.random() for _ in tokens], entropies=[draw.random() for _ in tokens])

    return play


def grown_by(
    engine: Any, name: str, form: Any, *, seed: int = 0, temperature: float = 1.0
) -> tuple[TreeRollout, Sampled]:
    tokenizer, sampled = published(name), Sampled(engine)
    agent = Agent(
        engine=sampled,  # type: ignore[arg-type]
        tools=(search,),
        format=partial(build_chat, ChatConfig(format=form, result_tokens=40), tokenizer),
        vocab_size=len(tokenizer) + PADDING,
    )
    config = RolloutConfig(leaves=8, roots=3, rule="random", temperature=temperature, **LIMITS)
    return asyncio.run(rollout_tree(agent, TASK, config, stats=StepStats(step=1), seed=seed)), sampled


def credit_of(grown: TreeRollout) -> CreditedTree:
    return credited(grown.tree, {leaf: (-1.0) ** number for number, leaf in enumerate(grown.tree.leaves())}, 0.5)


def check_tree(grown: TreeRollout, sampled: Sampled) -> None:
    """Each turn holds the tokens of one request, with their log-probabilities, asked for in the context that it stands
    in."""
    left = list(sampled.asked.values())
    for turn in grown.tree.turns.values():
        left.remove((grown.tree.context(turn.parent).tolist(), turn.tokens.tolist(), turn.logprobs))
        assert len(turn.logprobs) == len(turn.entropies) == len(turn.tokens)
    assert not left


def check_packs(tree: CreditedTree) -> None:
    """Rows hold the turns of their paths and nothing else; what branches share is there once."""
    for flat in (False, True):
        for batch in pack([tree], 100_000, flat=flat):
            assert sorted(set(batch.row_place_BL[batch.row_mask_BL].tolist())) == list(range(len(batch.predicts_P)))
            for (_, leaf), place_L, mask_L, logprob_L in zip(
                batch.leaves, batch.row_place_BL, batch.row_mask_BL, batch.engine_logprob_BL, strict=True
            ):
                turns = tree.tree.branch(leaf).turns
                assert batch.targets_P[place_L[mask_L]].tolist() == [token for turn in turns for token in turn.tokens]
                assert array("f", logprob_L[mask_L].tolist()) == array(
                    "f", [p for turn in turns for p in turn.logprobs]
                )
    [batch] = pack([tree], 100_000)
    segments = [tree.tree.prompt, *tree.tree.turns.values(), *tree.tree.observations.values()]
    assert batch.num_unique == sum(len(segment.tokens) for segment in segments)
    assert len(batch.predicts_P) == sum(len(turn.tokens) for turn in tree.tree.turns.values())


def learner(name: str, temperature: float = 1.0) -> LocalLearner:
    model = tiny_llama(vocab_size=len(published(name)) + PADDING, max_position_embeddings=2048, initializer_range=0.2)
    return LocalLearner(
        model,
        loss=LossConfig(),
        optim=OptimConfig(lr=1e-3),
        num_updates=2,
        token_budget=900,
        tree=True,
        temperature=temperature,
    )


@pytest.mark.parametrize("form", ["tags", "template"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_sampled_is_what_is_trained_on(name: str, form: str) -> None:
    spell = pieces(published(name))
    for seed in range(3):
        grown, sampled = grown_by(ScriptedEngine(speaker(name, form), published(name)), name, form, seed=seed)
        check_tree(grown, sampled)
        check_packs(credit_of(grown))
        for turn in grown.tree.turns.values():
            written = b"".join(map(spell, turn.tokens)).decode(errors="replace")
            if "\ufffd" not in written:  # of broken characters tokenizers show more or fewer
                assert grown.chat.text(turn.tokens) == written and written.startswith(grown.parsed[turn.place].text)
        for observation in grown.tree.observations.values():
            assert "in Peru." in grown.chat.text(observation.tokens) or all(
                o.status != "ok" for o in observation.outcomes
            )
    taught = learner(name)
    update = taught.update([credit_of(grown)])
    metrics = update.metrics
    assert metrics["skipped_updates"] == 0 and metrics["grad_norm"] > 0
    assert {place: len(values) for place, values in update.logprobs["t"].items()} == {
        p: len(t.tokens) for p, t in grown.tree.turns.items()
    }


@pytest.mark.parametrize(
    ("name", "form"), [("qwen3-thinking", "template"), ("mistral", "tags"), ("llama3.1", "template")]
)
def test_the_engines_log_probabilities_are_the_learners(name: str, form: str) -> None:
    taught = learner(name, temperature=0.8)
    engine = LocalEngine(taught.policy.model, published(name), dtype="float32")
    stops = build_chat(ChatConfig(format=form), published(name), (search,)).stop_tokens  # type: ignore[arg-type]
    with torch.no_grad():  # ends of turns, now and then
        head = taught.policy.model.get_output_embeddings().weight
        head[list(stops)] += 0.05 * head.std(0)
    asyncio.run(engine.update_weights(Weights(1, taught.weights())))
    grown, sampled = grown_by(engine, name, form, temperature=0.8)
    check_tree(grown, sampled)
    tree = credit_of(grown)
    check_packs(tree)
    update = taught.update([tree])
    for place, turn in grown.tree.turns.items():
        torch.testing.assert_close(
            torch.tensor(update.logprobs["t"][place]), torch.tensor(turn.logprobs), atol=1e-3, rtol=0
        )
    asyncio.run(engine.close())


TRACE = Trace(
    TASK,
    (
        RecordedStep("Look 😀.", (Call(name="search", arguments={"query": "Lima\né"}),)),
        RecordedStep("", (Call(name="search", arguments={"query": "Peru"}),)),
        RecordedStep("Done.", (), "Peru"),
    ),
)


@pytest.mark.parametrize("form", ["tags", "template"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_cold_start_learns_what_a_rollout_would_write(name: str, form: Any) -> None:
    """Turns with their ends and nothing else, in the contexts that a policy meets, thoughts opened once and read
    back."""
    tokenizer = published(name)
    format_for = partial(build_chat, ChatConfig(format=form), tokenizer)
    agent = Agent(
        engine=ScriptedEngine(speaker(name, form)), tools=(search,), format=format_for, vocab_size=len(tokenizer)
    )
    config = RolloutConfig(leaves=1, roots=1, rule="none", **LIMITS)
    [tree] = asyncio.run(traces_to_trees(agent, [TRACE], config, seed=0))
    turns = list(tree.tree.turns.values())
    said = iter([turn.tokens for turn in turns])
    played = replace(agent, engine=ScriptedEngine(lambda prompt, params: next(said), tokenizer))
    grown = asyncio.run(rollout_tree(played, TASK, config, stats=StepStats(step=1), seed=0))
    assert [list(s.tokens) for s in grown.tree.path((0, 0, 0))] == [list(s.tokens) for s in tree.tree.path((0, 0, 0))]
    assert all(parsed.well_formed for parsed in grown.parsed.values()) and grown.parsed[0, 0, 0].answer == "Peru"
    [batch] = pack([tree], 10_000)
    assert batch.targets_P.tolist() == [token for turn in turns for token in turn.tokens]
    ends = format_for((search,)).stop_tokens
    assert all((turn.tokens[-1] in ends) == (form == "template") for turn in turns)
    whole = grown.chat.text(grown.tree.context((0,)))
    assert whole.count("Look 😀.") == 1 and "<think>\n<think>" not in whole
