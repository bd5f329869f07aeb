"""The laboratory's world: its tasks, tools, tokens and traces agree, and its knobs do what they say."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from arpo.errors import ConfigError
from arpo.models.lab import WORDS, make
from arpo.tasks import Task, lab
from arpo.tools import CallContext
from arpo.tools.config import ToolConfig, build_tools

TOOLS = build_tools([ToolConfig(use=f"arpo.tools.lab:{name}") for name in lab.TOOLS])


def test_no_two_tasks_have_the_same_question_and_any_knob_keeps_it_so():
    for options in ({}, {"depth": 3, "branching": 2, "noise": 0.5}):
        questions = [task.question for split in lab.COUNTS for task in lab.tasks(split, **options)]
        assert len(questions) == len(set(questions)) == sum(lab.COUNTS.values())


def test_the_trail_leads_to_the_answer_through_the_tools_alone():
    for task in lab.tasks("validation")[:50]:
        trail = lab.trail_of(task)
        for place in trail.path[:-1]:
            doors = asyncio.run(call("search", task, place)).removeprefix("doors ").split()
            assert sum(door.partition(":")[2] in trail.path for door in doors) == 1
        assert asyncio.run(call("search", task, trail.path[-1])) == f"holds:{task.answers[0]}"


async def call(tool: str, task: Task, place: str) -> str:
    context = CallContext(task=task, deadline_s=5.0, seed=0)
    return (await next(each for each in TOOLS if each.name == tool)({"place": place}, context)).text


def test_noise_makes_places_dark_and_answers_vague_and_without_it_none_is():
    for noise in (0.0, 0.3):
        trails = [lab.trail_of(task) for task in lab.tasks("train", noise=noise)[:1000]]
        dark = sum(len(t.dark) for t in trails) / sum(len(t.path) - 1 for t in trails)
        unsure = Counter(t.answer("ask", place) for t in trails for place in t.path)
        assert abs(dark - noise) < 0.03
        assert abs(unsure["unsure"] / unsure.total() - noise) < 0.03


def test_a_cue_tells_more_the_stronger_the_signal():
    """The odds of a door with a cue against one with the opposite cue: exp(2 signal (z - z'))."""
    shares = []
    for signal in (0.0, 1.0, 3.0):
        counts: Counter[tuple[str, bool]] = Counter()
        for task in lab.tasks("train", signal=signal)[:2000]:
            trail = lab.trail_of(task)
            counts.update((cue, name in trail.path) for doors in trail.doors.values() for cue, name in doors)
        best = lab.CUES[-1]
        shares.append(counts[best, True] / (counts[best, True] + counts[best, False]))
    assert abs(shares[0] - 1 / 3) < 0.04
    assert shares[0] + 0.1 < shares[1] < shares[2] - 0.1


def test_traces_leave_room_to_learn_and_keep_to_the_limits():
    traces = lab.traces(1000)
    right = sum(trace.steps[-1].answer == trace.task.answers[0] for trace in traces) / len(traces)
    assert 0.4 < right < 0.6
    assert max(len(trace.steps) - 1 for trace in traces) == lab.MAX_CALLS
    assert lab.traces(5) == traces[:5] != lab.traces(5, seed=1)


@pytest.mark.parametrize("options", [{"depth": 0}, {"branching": 9}, {"noise": 2.0}, {"dept": 2}, {"depth": True}])
def test_a_wrong_knob_is_named(options):
    with pytest.raises(ConfigError) as caught:
        lab.tasks("train", **options)
    assert caught.value.where == f"options.{next(iter(options))}"


def test_every_word_of_the_world_is_one_token_and_any_text_comes_back(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    trace = next(trace for trace in lab.traces(20) if len(trace.steps) > 3)
    texts = [trace.task.question, *(step.results[0] for step in trace.steps[:-1])]
    assert all(len(tokenizer.encode(word)) == 1 for word in WORDS)
    assert max(len(tokenizer.encode(text)) for text in texts) <= 7
    for text in (*texts, "Ünd (No calls left: answer now.)\n 水"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 1e6 < sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tmp_path).parameters()) < 5e6
