"""Agents of served models: whole rollouts over a real server on this machine, with tags as text and with native
calls."""

import copy
from typing import Any

import pytest

import arpo
from arpo.chat.tags import TagFormat
from arpo.chat.token_text import TokenText
from arpo.core.branching import StepStats
from arpo.core.credit import ScoredTree
from arpo.core.record import decode, encode, replay
from arpo.core.tree import FinishReason, StopReason
from arpo.endpoint.client import Endpoint
from arpo.endpoint.client import Reply as Said
from arpo.endpoint.config import EndpointConfig
from arpo.engines.config import EngineConfig
from arpo.errors import ConfigError, ToolsStoppedError
from arpo.rollout.collect import Rollout, record_of
from arpo.rollout.config import RolloutConfig
from arpo.rollout.watching import BranchEnded, ResultsRead, RolloutEvent, TextWritten, TurnWritten, Watch
from arpo.served.agent import ServedAgent, ServedRollout
from arpo.served.completions import CompletionDialogue, with_stop
from arpo.served.native import NativeDialogue
from arpo.tasks import Task
from localhost import Asked, Reply, serving
from published_formats import published

TASK = Task(id="t", messages=({"role": "user", "content": "Capital of Peru?"},), answers=("Lima",))
LIMITS = RolloutConfig(
    leaves=2, roots=2, rule="none", max_calls=2, turn_tokens=100, branch_tokens=2000, head=2, retries=0
)


@arpo.tool
def search(query: str) -> str:
    """Looks things up."""
    return f"{query}: Lima is the capital"


def completion(text: str, finish: str = "stop", **more: Any) -> Reply:
    return Reply(
        {
            "choices": [{"text": text, "finish_reason": finish, **more}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3},
        }
    )


def message(content: str | None, *calls: str, finish: str = "stop") -> Reply:
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": "search", "arguments": given}}
        for n, given in enumerate(calls)
    ]
    told = {"role": "assistant", "content": content, **({"tool_calls": made} if made else {})}
    return Reply({"choices": [{"message": told, "finish_reason": "tool_calls" if made else finish}]})


def agent(url: str, tokenizer: Any = None, **settings: Any) -> ServedAgent:
    config = EndpointConfig(**{"url": f"{url}/v1", "model": "m", "retries": 1, **settings})

    def dialogue(tools: Any) -> Any:
        if tokenizer is None:
            return NativeDialogue(system="Be brief.")
        return CompletionDialogue(TagFormat(tokenizer, tools), TokenText(tokenizer), prompt=config.prompt)

    return ServedAgent(endpoint=Endpoint(config, "model's endpoint"), tools=(search,), dialogue=dialogue)


async def grown(one: ServedAgent, watch: Watch | None = None, **limits: Any) -> ServedRollout:
    try:
        return await one.rollout(
            TASK, LIMITS.model_copy(update=limits), stats=StepStats(step="test"), seed=3, watch=watch
        )
    finally:
        await one.close()


def native_world(asked: Asked) -> Reply:
    last = asked.json["messages"][-1]
    return message("The answer is \\boxed{Lima}") if last["role"] == "tool" else message(None, '{"query": "Peru"}')


async def test_native_calls_reach_the_tools_and_their_results_the_model() -> None:
    with serving(native_world) as site:
        tree = await grown(agent(site.url))
        bodies = [asked.json for asked in site.asked]
    assert {asked.path for asked in site.asked} == {"/v1/chat/completions"} and len(bodies) == 4
    assert bodies[-1]["messages"][-1] == {"role": "tool", "tool_call_id": "c0", "content": "Peru: Lima is the capital"}
    assert bodies[0]["tools"][0]["function"]["name"] == "search" and bodies[0]["temperature"] == 1.0
    assert len({body["seed"] for body in bodies}) == 4 and all(0 <= body["seed"] < 2**31 for body in bodies)
    assert [tree.parsed[0, 0].answer, tree.parsed[1, 0].answer] == ["Lima", "Lima"]
    assert set(tree.tree.endings.values()) == {StopReason.FINISHED}
    assert not any(turn.tokens for turn in tree.tree.turns.values())
    assert tree.turn_text((0,)) == '<tool_call>search({"query": "Peru"})</tool_call>'
    assert tree.observation_text((0,)) == "<tool_response>Peru: Lima is the capital</tool_response>"
    assert "user: Capital of Peru?" in tree.prompt_text() and "tools: search" in tree.prompt_text()


async def test_tokens_and_money_are_those_that_the_endpoint_counts() -> None:
    def world(asked: Asked) -> Reply:
        said = native_world(asked)
        told = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 500}, "completion_tokens": 50}
        return Reply({**said.content, "usage": told})

    with serving(world) as site:
        one = agent(site.url, prices={"prompt": 2.0, "cached": 1.0, "completion": 10.0})
        tree = await grown(one, branch_tokens=5000)
    assert (tree.num_read((0,)), tree.num_written((0, 0))) == (1000, 50)
    assert tree.money((0,)) == pytest.approx(0.002) and one.spent.money == pytest.approx(4 * 0.002)


async def test_its_record_is_written_read_and_replayed_as_any_other() -> None:
    with serving(native_world) as site:
        tree = await grown(agent(site.url))
    record = record_of(Rollout(grown=tree, scored=ScoredTree(tree.tree, {}), transcripts={}))
    [again] = decode(encode(record))
    assert again == record and replay(again) == tree.tree
    texts = record.notes["texts"]
    assert isinstance(texts, dict) and "Lima" in texts["0.0"]


async def test_who_watches_is_told_turns_and_results_as_they_come() -> None:
    told: list[RolloutEvent] = []
    with serving(native_world) as site:
        await grown(agent(site.url), leaves=1, roots=1, watch=told.append)
    kinds = [TextWritten, TurnWritten, ResultsRead, TextWritten, TurnWritten, BranchEnded]
    assert [type(event) for event in told] == kinds
    assert "Lima is the capital" in told[2].text and "boxed{Lima}" in told[3].text  # type: ignore[union-attr]


async def test_tags_go_over_completions_and_their_closing_tags_come_back(tokenizer: Any) -> None:
    def world(asked: Asked) -> Reply:
        if "<result>" in asked.json["prompt"].rpartition("assistant")[2]:
            return completion("<think>So.</think><answer>Lima")  # endpoints leave the stop string out
        return completion("<think>I look.</think><search>Peru")

    with serving(world) as site:
        tree = await grown(agent(site.url, tokenizer))
        first, last = site.asked[0].json, site.asked[-1].json
    assert {asked.path for asked in site.asked} == {"/v1/completions"}
    assert first["stop"] == ["</search>", "</answer>"] and "Capital of Peru?" in first["prompt"]
    assert last["prompt"].endswith("<search>Peru</search>\n<result>Peru: Lima is the capital</result>\n")
    assert tree.parsed[0, 0].answer == "Lima" and all(said.well_formed for said in tree.parsed.values())


async def test_a_context_as_text_begins_once_and_has_no_blank_that_nobody_wrote() -> None:
    """A server puts the beginning-of-sequence token before a text itself; sentence pieces begin with a blank."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(published("mistral"))
    start = tokenizer.bos_token_id
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)])
    says = iter(["<think>a</think><search>Peru", "<think>b</think><answer>Lima"])
    with serving(lambda _: completion(next(says))) as site:
        one = agent(site.url, tokenizer)
        await grown(one, leaves=1, roots=1)
    first, second = (asked.json["prompt"] for asked in site.asked)
    assert one.dialogue([search]).begin(TASK, [search]).tokens[0] == start and first.startswith("[INST] ")
    assert second.startswith(first + "<think>a</think><search>Peru</search>\n<result>Peru: Lima is")


async def test_contexts_can_be_sent_as_tokens(tokenizer: Any) -> None:
    with serving(lambda _: completion("<think>x</think><answer>Lima</answer>", stop_reason="</answer>")) as site:
        tree = await grown(agent(site.url, tokenizer, prompt="tokens"))
        sent = site.asked[0].json["prompt"]
    assert sent == list(TagFormat(tokenizer, [search]).render(TASK, [search])) and tree.parsed[0,].answer == "Lima"


async def test_cut_and_plainly_ended_turns(tokenizer: Any) -> None:
    with serving(lambda _: completion("<think>and so on", "length")) as site:
        assert set((await grown(agent(site.url, tokenizer))).tree.endings.values()) == {StopReason.TURN_LENGTH}
    with serving(lambda _: completion("I do not know.")) as site:
        tree = await grown(agent(site.url, tokenizer))
    assert tree.turns[0,].context.tokens[-1] == tokenizer.eos_token_id and not tree.parsed[0,].well_formed
    with serving(lambda _: message("Li", finish="length")) as site:
        assert set((await grown(agent(site.url))).tree.endings.values()) == {StopReason.TURN_LENGTH}


STOPS = ("</search>", "</answer>")


@pytest.mark.parametrize(
    ("said", "text", "closed"),
    [
        (Said(text="<search>x", finish="stop"), "<search>x</search>", True),
        (Said(text="<search>x</search>", finish="stop"), "<search>x</search>", True),
        (Said(text="<search>x", finish="stop", matched="</search>"), "<search>x</search>", True),
        (Said(text="<search>x", finish="stop", matched=""), "<search>x", False),  # it ended its message inside the tag
        (Said(text="<search>x", finish="length"), "<search>x", False),
        (
            Said(text="<think>maybe <search></think><answer>y", finish="stop"),
            "<think>maybe <search></think><answer>y</answer>",
            True,
        ),
        (Said(text="no tag", finish="stop"), "no tag", False),
    ],
)
def test_the_stop_string_that_ended_a_turn(said: Said, text: str, closed: bool) -> None:
    assert with_stop(said, STOPS) == (text, closed)


async def test_a_question_that_cannot_be_asked_is_an_outcome_and_a_wrong_key_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(lambda _: Reply({"error": {"message": "context too long"}}, status=400)) as site:
        tree = await grown(agent(site.url))
    assert set(tree.tree.endings.values()) == {StopReason.ENGINE_FAILED} and "context too long" in tree.failures[0][1]
    monkeypatch.setenv("MY_API_KEY", "sk-wrong-key")
    with serving(lambda _: Reply({"error": "no"}, status=401)) as site:
        refused = agent(site.url, key_env="MY_API_KEY")
        with pytest.raises(ToolsStoppedError, match="refuses the key in MY_API_KEY"):
            await grown(refused)


async def test_broken_answers_are_asked_again() -> None:
    left = [Reply('{"choices": [{"mess'), Reply(status=503), message("Lima")]
    with serving(lambda _: left.pop(0) if len(left) > 1 else left[0]) as site:
        tree = await grown(agent(site.url, retries=3), leaves=1, roots=1)
    assert tree.turns[0,].finish is FinishReason.STOP and tree.turn_text((0,)) == "Lima"


def test_a_recipe_says_what_lacks() -> None:
    with pytest.raises(ConfigError, match="needs an endpoint"):
        EngineConfig(kind="openai")
    with pytest.raises(ConfigError, match="set kind to openai"):
        EngineConfig(endpoint={"url": "http://x/v1", "model": "m"})
