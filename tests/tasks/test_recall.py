"""The recall world: pages, tool, tokens and traces agree, and its knobs do what they say."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from arpo.errors import ConfigError
from arpo.models.lab import RECALL_WORDS, make_recall
from arpo.tasks import recall
from arpo.tasks.data import DataConfig, load_with_report
from arpo.tools import CallContext
from arpo.tools.recall import Note


def test_the_tool_reads_page_after_page_in_every_branch_and_the_answer_stood_early():
    async def read(task, note):
        state = await note.open(task)
        context = CallContext(task=task, deadline_s=5.0, seed=0, state=state)
        first = [(await note({}, context)).text for _ in range(6)]
        other = CallContext(task=task, deadline_s=5.0, seed=0, state=await note.fork(state))
        rest = [(await note({"text": "fox"}, context)).text for _ in range(7)]
        assert rest == [(await note({}, other)).text for _ in range(7)]
        return first + rest

    for task in recall.tasks("test", turns=12, early=6, facts=3)[:20]:
        pages = asyncio.run(read(task, Note()))
        *log, question, again = pages
        facts = [page.split()[-1] for page in log if len(page.split()) == 7]
        assert len(facts) == 3 and facts == [page.split()[-1] for page in log[:6] if len(page.split()) == 7]
        asked = question.removeprefix("asked ")
        assert [*task.answers] == [fact for fact in facts if fact in recall.KINDS[asked]] and again == question


def test_kinds_are_told_apart_and_tasks_by_what_they_ask():
    facts = [fact for kind in recall.KINDS.values() for fact in kind]
    assert len(facts) == len(set(facts)) and not set(facts) & set(recall.WEATHER)
    questions = [task.metadata["question"] for split in recall.COUNTS for task in recall.tasks(split)]
    assert len(questions) == len(set(questions)) == sum(recall.COUNTS.values())
    assert load_with_report(DataConfig(source="arpo.tasks.recall:tasks"))[1].duplicates == 0


def test_traces_note_every_other_fact_and_say_when_they_do_not_know():
    traces = recall.traces(1000)
    steps = [step for trace in traces for step in trace.steps]
    noted = sum(bool(call.arguments) for step in steps for call in step.calls)
    facts = {fact for kind in recall.KINDS.values() for fact in kind}
    read = sum(not facts.isdisjoint(text.split()) for step in steps for text in step.results)
    assert 0.4 < noted / read < 0.6
    for trace in traces:
        seen = " ".join([str(trace.task.messages[0]["content"]), *(text for s in trace.steps for text in s.results)])
        answer, right = trace.steps[-1].answer, trace.task.answers[0]
        assert answer == (right if right in seen.split() else recall.UNKNOWN)
    assert Counter(trace.steps[-1].answer == recall.UNKNOWN for trace in traces)[True] > 100
    assert recall.traces(5) == traces[:5] != recall.traces(5, seed=1)


@pytest.mark.parametrize("options", [{"turns": 1}, {"early": 200}, {"facts": 4}, {"wrods": 2}, {"words": True}])
def test_a_wrong_knob_is_named(options):
    with pytest.raises(ConfigError) as caught:
        recall.tasks("train", **options)
    assert caught.value.where == f"options.{next(iter(options))}"


def test_every_word_of_the_world_is_one_token(tmp_path: Path):
    from transformers import AutoTokenizer

    make_recall(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert all(len(tokenizer.encode(word)) == 1 for word in RECALL_WORDS)
    log = recall.log_of(recall.tasks("test")[0])
    texts = [log.page(number) for number in range(1, 201)]
    assert max(len(tokenizer.encode(text)) for text in texts) == 8  # a fact comes after a space
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
