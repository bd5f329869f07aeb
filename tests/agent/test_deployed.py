"""The agent in use: what it answers, what it tells on the way, what it remembers, and which of several answers
counts."""

import asyncio
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_world import deployed
from arpo.agent.deployed import DeployedAgent
from arpo.agent.pick import AgentAnswer, picked
from arpo.assembly.resolve import resolve_for_chat
from arpo.cli.chatting import print_answer
from arpo.core import StopReason
from arpo.core.branching import StepStats
from arpo.display.terminal import Console
from arpo.engines.scripted import Script
from arpo.errors import ConfigError
from arpo.rollout.watching import Branched, BranchEnded, ResultsRead, TextWritten, TurnWritten
from localhost import Asked, Reply, serving
from small_world import ANSWER, Search, agent, config, results_in, search, task, timeless, unsure
from tiny_project import TinyProject
from virtual_time import run


def looks_up(tokenizer: Any) -> Any:
    """Calls once, then answers."""

    def play(prompt: Any, params: Any) -> Script:
        return Script(said="<think>Lima it is.</think>" + ANSWER) if results_in(tokenizer, prompt) else search()

    return play


def says(*answers: str) -> Any:
    """Each branch one of `answers`, as its seed has it."""
    return lambda prompt, params: f"<think>So.</think><answer>{Random(params.seed).choice(answers)}</answer>"


async def told(agent: DeployedAgent, question: str, **how: Any) -> list[Any]:
    return [event async for event in agent.stream(question, **how)]


# --- one answer


def test_it_answers_with_its_tools(tokenizer: Any) -> None:
    tool = Search()
    answer = run(deployed(tokenizer, looks_up(tokenizer), tool).ask("Capital of Peru?"))
    assert (answer.text, str(answer), answer.ending, answer.votes) == ("Lima", "Lima", "finished", {"Lima": 1})
    assert tool.calls == 1 and answer.leaf == (0, 0) and len(answer.rollout.tree.endings) == 1


def test_events_tell_all_of_the_tree_in_its_order(tokenizer: Any) -> None:
    events = run(told(deployed(tokenizer, unsure), "Capital of Peru?", samples=6, seed=3))
    *steps, answer = events
    tree, parsed = answer.rollout.tree, answer.rollout.parsed
    assert len(tree.endings) == 6 and sum(s.siblings for s in steps if isinstance(s, Branched)) == (
        answer.rollout.expansion.num_branches
    )
    written = {s.place: s.turn for s in steps if isinstance(s, TurnWritten)}
    assert written == parsed and set(written) == set(tree.turns)
    for place, turn in written.items():
        text = "".join(s.text for s in steps if isinstance(s, TextWritten) and s.place == place)
        assert text == turn.text, "the text as it came is the turn's"
    read = {s.place: s.results for s in steps if isinstance(s, ResultsRead)}
    assert read == {place: seen.outcomes for place, seen in tree.observations.items()}
    assert {s.place: s.ending for s in steps if isinstance(s, BranchEnded)} == tree.endings
    for number, step in enumerate(steps):
        if isinstance(step, TextWritten) and len(step.place) > 1:
            assert any(isinstance(s, ResultsRead) and s.place == step.place[:-1] for s in steps[:number])


@given(st.integers(0, 1000))
def test_a_watched_tree_is_the_tree_that_nobody_watches(tokenizer: Any, seed: int) -> None:
    from arpo.core.credit import ScoredTree
    from arpo.rollout.collect import Rollout

    async def grown(watch: Any) -> Any:
        rollout = await agent(tokenizer, unsure).rollout(
            task(), config(leaves=6, roots=2), stats=StepStats(step=1), seed=seed, watch=watch
        )
        await rollout.states.close()
        return timeless(Rollout(grown=rollout, scored=ScoredTree(rollout.tree, {}), transcripts={}))

    assert run(grown(None)) == run(grown(lambda event: None))


def test_what_the_last_token_of_a_tag_brings_along_is_not_shown(tokenizer: Any) -> None:
    """One token may be `><`: it closes the tag, so the turn ends, and its second character is nobody's."""
    said = "<think>Lima it is.</think><answer>Lima</answer><"
    events = run(told(deployed(tokenizer, lambda prompt, params: said), "Capital?"))
    assert "".join(e.text for e in events if isinstance(e, TextWritten)) == said[:-1]


def test_an_answer_may_take_more_than_a_context_holds(tokenizer: Any) -> None:
    """What happened is told as in any other answer, and the next question follows it."""
    read: list[int] = []

    def play(prompt: Any, params: Any) -> Script:
        read.append(len(prompt))
        last = "No calls left" in tokenizer.decode(list(prompt))
        return Script(said="<think>Lima it is.</think>" + ANSWER) if last else search()

    tool = Search(reply=lambda query: "Lima is a city in Peru. " * 8)
    sizes = {"branch_tokens": 900, "max_calls": 12, "context": {"use": "drop_results", "at": 600}}
    who = deployed(tokenizer, play, tool, run={"rollout": sizes})

    async def twice() -> list[list[Any]]:
        return [await told(who, question) for question in ("Capital of Peru?", "Are you sure?")]

    for *steps, answer in run(twice()):
        tree = answer.rollout.tree
        assert (answer.text, answer.ending, len(answer.leaf)) == ("Lima", "finished", 13)
        assert len(tree.contexts(answer.leaf)) > 2 and max(read) + 60 <= 900
        seen = {step.place: step.results for step in steps if isinstance(step, ResultsRead)}
        assert seen == {place: seen.outcomes for place, seen in tree.observations.items()}
    assert [message["content"] for message in who.messages if message["role"] != "system"] == [
        *("Capital of Peru?", "Lima", "Are you sure?", "Lima")
    ]


def test_a_seed_repeats_an_answer_and_questions_differ_in_theirs(tokenizer: Any) -> None:
    words = tuple(map(str, range(1000)))

    async def asked(seed: int | None) -> list[str]:
        agent = deployed(tokenizer, says(*words))
        return [str(await agent.session().ask("Capital?", seed=seed)) for _ in range(3)]

    assert len(set(run(asked(5)))) == 1 and len(set(run(asked(None)))) == 3
    assert run(asked(None)) == run(asked(None)), "an agent's first questions have the same seeds"


def test_an_engine_that_fails_is_an_answer_that_says_so(tokenizer: Any) -> None:
    broken = deployed(tokenizer, lambda prompt, params: Script(said=ANSWER, fails_after=0))
    answer = run(broken.ask("Capital?"))
    assert (answer.text, answer.ending, answer.votes) == ("", StopReason.ENGINE_FAILED, {})
    assert answer.why == "the script fails after 0 tokens"


def test_closing_a_stream_stops_the_engine_and_leaves_the_conversation(tokenizer: Any) -> None:
    slow = deployed(tokenizer, lambda prompt, params: search(delay_s=5.0, token_s=1.0))

    async def stopped() -> None:
        events = slow.stream("Capital?")
        async for event in events:
            assert isinstance(event, TextWritten)
            break
        await events.aclose()
        assert slow.components.agent.engine.live == 0 and not slow.messages  # type: ignore[attr-defined]

    run(stopped())


# --- memory


def remembers(prompt_text: str) -> str:
    """Answers with how many questions it sees."""
    return f"<think>So.</think><answer>{prompt_text.count('Question')}</answer>"


def test_it_remembers_the_conversation_and_sessions_are_independent(tokenizer: Any) -> None:
    agent = deployed(tokenizer, lambda prompt, params: remembers(tokenizer.decode(list(prompt))))

    async def talk() -> list[str]:
        other = agent.session()
        first = [str(await agent.ask("Question a")), str(await agent.ask("Question b"))]
        beside = [str(answer) for answer in await asyncio.gather(other.ask("Question c"), other.ask("Question d"))]
        agent.forget()
        return [*first, *beside, str(await agent.ask("Question e"))]

    assert run(talk()) == ["1", "2", "1", "2", "1"]
    assert [message["role"] for message in agent.messages] == ["user", "assistant"]


def test_a_long_conversation_forgets_its_beginning(tokenizer: Any) -> None:
    small = {"rollout": {"branch_tokens": 300, "turn_tokens": 40}, "chat": {"result_tokens": 20}}
    agent = deployed(tokenizer, lambda prompt, params: remembers(tokenizer.decode(list(prompt))), run=small)

    async def talk() -> list[int]:
        session = agent.session()
        seen = [int(str(await session.ask(f"Question {'and more ' * 5}{number}?"))) for number in range(9)]
        assert session.forgotten == 18 - len(session.messages) > 0
        return seen

    seen = run(talk())
    assert seen[:2] == [1, 2] and seen[-1] == seen[-2] < 9


# --- several answers


@given(st.lists(st.sampled_from(["54", "54.0", r"\frac{108}{2}", "53", "50", None]), min_size=1, max_size=7))
def test_the_vote_is_the_largest_class_of_equal_answers(tokenizer: Any, answers: list[str | None]) -> None:
    """Against counting values: the first three are one number."""
    left = iter(answers)

    def play(prompt: Any, params: Any) -> str:
        answer = next(left)
        return "<think>Hm.</think>Hm" if answer is None else f"<think>So.</think><answer>{answer}</answer>"

    agent = deployed(tokenizer, play, run={"rollout": {"rule": "none"}})
    answer = asyncio.run(agent.ask("How much?", samples=len(answers), pick="vote"))
    values = [54.0 if a and a[:2] in ("54", "\\f") else float(a) if a else None for a in answers]
    counts = {value: values.count(value) for value in dict.fromkeys(values) if value is not None}
    assert sorted(answer.votes.values()) == sorted(counts.values())
    if counts:
        winner = max(counts, key=lambda value: counts[value])
        assert answer.text == answers[values.index(winner)] and answer.leaf == (values.index(winner),)
    else:
        assert answer.votes == {} and answer.text.startswith("<think>Hm.")


def test_samples_branch_where_the_recipe_does(tokenizer: Any) -> None:
    branching = {"rollout": {"leaves": 8, "roots": 2, "rule": {"rule": "fixed", "at": 1}}}
    answer = run(deployed(tokenizer, looks_up(tokenizer), run=branching).ask("Capital?", samples=8))
    tree = answer.rollout.tree
    assert len(tree.endings) == 8 and answer.rollout.planned_roots == 2 and answer.rollout.expansion.num_branches > 0
    assert answer.votes == {"Lima": 8}
    flat = run(deployed(tokenizer, looks_up(tokenizer), run={"rollout": {"rule": "none"}}).ask("Capital?", samples=8))
    assert len(flat.rollout.tree.children(())) == 8


def test_the_judge_says_which_answers_are_the_same(tokenizer: Any) -> None:
    def judge(asked: Asked) -> Reply:
        told = asked.json["messages"][1]["content"]
        same = {"Lima", "the city of Lima"} >= {told.rpartition(":\n")[2], told.split("- ")[1].partition("\n")[0]}
        verdict = {"final_answer": "x", "reason": "x", "verdict": "right" if same else "wrong"}
        message = {"role": "assistant", "content": json.dumps(verdict)}
        return Reply({"choices": [{"message": message, "finish_reason": "stop"}]})

    answers = iter(["Cusco", "Lima", "Cusco", "the city of Lima", "Lima"])
    play = lambda prompt, params: f"<think>So.</think><answer>{next(answers)}</answer>"  # noqa: E731

    async def asked(url: str) -> AgentAnswer:
        recipe = {"rollout": {"rule": "none"}, "evaluation": {"judge": {"url": f"{url}/v1", "model": "m"}}}
        async with deployed(tokenizer, play, run=recipe) as agent:
            return await agent.ask("Capital?", samples=5, pick="judge")

    with serving(judge) as site:
        answer = asyncio.run(asked(site.url))
        assert answer.votes == {"Cusco": 2, "Lima": 3} and answer.text == "Lima"
        assert len(site.asked) == 3, "equal texts are not asked about"


@pytest.mark.parametrize(
    ("how", "says_what"),
    [({"pick": "judge"}, "evaluation.judge"), ({"pick": "best"}, "vote or judge"), ({"samples": 0}, "at least 1")],
)
def test_what_cannot_be_picked_is_refused(tokenizer: Any, how: dict[str, Any], says_what: str) -> None:
    with pytest.raises(ConfigError, match=says_what):
        run(deployed(tokenizer, says("a")).ask("Capital?", **how))


# --- the terminal


def test_the_terminal_shows_turns_and_results_once_and_in_order(tokenizer: Any) -> None:
    shown = io.StringIO()
    session = deployed(tokenizer, looks_up(tokenizer)).session()
    run(print_answer(session, "Capital of Peru?", Console(file=shown, width=200)))
    text = shown.getvalue()
    parts = ["<search>capital</search>", "<result>Peru: capital is Lima.</result>", "<answer>Lima</answer>"]
    assert [text.count(part) for part in parts] == [1, 1, 1] and sorted(parts, key=text.index) == parts


def test_the_terminal_says_why_an_answer_did_not_come(tokenizer: Any) -> None:
    shown = io.StringIO()
    play = lambda prompt, params: Script(said=ANSWER, fails_after=0)  # noqa: E731
    run(print_answer(deployed(tokenizer, play).session(), "Capital?", Console(file=shown, width=200)))
    assert "[ended: engine failed: the script fails after 0 tokens]" in shown.getvalue()


# --- from a folder


async def test_a_run_is_loaded_with_its_tools_and_settings_can_be_changed(
    tiny_run: Any, tiny_project: TinyProject
) -> None:
    async with DeployedAgent.load(tiny_run, overrides=["rollout.max_calls=1"]) as agent:
        assert [tool.name for tool in agent.components.agent.tools] == ["parity"]
        assert "step 2" in agent.label and agent.run.rollout.max_calls == 1
        answers = [await agent.session().ask(f"Parity of {number}", samples=4) for number in (3, 8)]
    assert all(len(answer.rollout.tree.endings) == 4 for answer in answers)
    assert any(answer.rollout.tree.observations for answer in answers)
    with pytest.raises(ConfigError, match="tools and no prompt"):
        DeployedAgent.load(tiny_project.model)


def test_a_bundled_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = resolve_for_chat("recall", None, ["train.steps=7"])
    assert (named.run.name, named.run.train.steps, named.weights) == ("recall", 7, None)
    (tmp_path / "recall").mkdir()  # a folder of this name comes first
    with pytest.raises(ConfigError, match="not found in recall"):
        resolve_for_chat("recall", None)


async def test_picked_needs_no_turn(tokenizer: Any) -> None:
    """A tree of which not one turn was written has an answer without text."""
    broken = agent(tokenizer, lambda prompt, params: Script(said=ANSWER, fails_after=0))
    rollout = await broken.rollout(task(), config(leaves=2, roots=2), stats=StepStats(step=1), seed=0)
    answer = await picked(rollout, lambda *_: pytest.fail("nothing to compare"))
    assert answer.text == "" and answer.ending is StopReason.ENGINE_FAILED
