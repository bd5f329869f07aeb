"""Records: bytes there and back, replay, torn and foreign files."""

import io
import json
import struct
import zlib
from array import array
from dataclasses import dataclass, replace
from random import Random

import pytest
from expansion_world import Whim, World, grow
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core import (
    AdvantageConfig,
    Aepo,
    Call,
    CallStatus,
    Chance,
    Decision,
    Expansion,
    Fixed,
    HeadKnown,
    Never,
    Paper,
    Pilot,
    Prompt,
    Released,
    Role,
    RolloutTree,
    Score,
    ScoredTree,
    StepStats,
    StopReason,
    Threshold,
    ToolCallResult,
    TreeRecord,
    decode,
    encode,
    replay,
)
from arpo.core.credit import credit
from arpo.core.expansion import ExpansionConfig
from arpo.errors import FormatError
from random_trees import random_tree

RULES = [Never(), Fixed(siblings=2), Chance(rates=(0.9, 0.5)), Paper(), Released(), Threshold(window=2), Aepo()]


@st.composite
def records(draw):
    seed = draw(st.integers(0, 10**6))
    leaves = draw(st.integers(1, 8))
    grown = grow(
        World(
            seed=seed,
            fails=draw(st.sampled_from([0.0, 0.3])),
            cut=draw(st.sampled_from([0.0, 0.3])),
            interval=draw(st.booleans()),
        ),
        seed,
        rule=draw(st.sampled_from(RULES)),
        leaves=leaves,
        roots=draw(st.one_of(st.integers(1, leaves), st.just(Pilot(beta=0.5)))),
        root_cap=draw(st.sampled_from([None, 2])),
        stats=StepStats(step=draw(st.sampled_from([4, "test"])), window=(0.25, 1 / 3)),
        task="täsk \ud800",
    )
    random = Random(seed)
    scores = {
        leaf: Score(
            reward=random.random(), accuracy=1.0, parts={"format": 0.1}, turns=(0.5,) * len(leaf) * (leaf[0] % 2)
        )
        for leaf, ending in grown.tree.endings.items()
        if not ending.aborted
    }
    (credited,) = credit([ScoredTree(grown.tree, scores)], AdvantageConfig(blend=0.5))
    notes = {
        "tokenizer": "smol",
        "learner": {"0.0": array("f", [0.5, -1.5])},
        "i": [1, None, {"f": "text", "map": {}}],
        "empty": {},
    }
    return TreeRecord.from_expansion(grown, credited, notes)


@settings(max_examples=50, deadline=None)
@given(records())
def test_a_record_survives_its_bytes_and_replays(record):
    (again,) = decode(encode(record))
    assert again == record
    assert again.credited.advantages == record.advantages and again.scored.scores == record.scores
    assert replay(again) == record.tree
    assert encode(again) == encode(record)


@settings(max_examples=20, deadline=None)
@given(records())
def test_a_tree_that_is_still_growing_can_be_recorded_and_replayed(record):
    for count in (0, len(record.events) // 2):
        part = Expansion.from_config(
            RolloutTree(record.tree.task, record.tree.step, Prompt(tokens=record.tree.prompt.tokens)), record.config
        )
        part.start()
        for event in record.events[:count]:
            part.feed(event)
        (again,) = decode(encode(TreeRecord.from_expansion(part)))
        assert replay(again) == part.tree


def small(seed=1, **values):
    return TreeRecord.from_expansion(
        grow(World(seed=seed, go_on=0.9), **{"rule": Paper(), "leaves": 4, "roots": 2, **values})
    )


def test_frames_follow_each_other_in_any_stream():
    frames = b"".join(encode(small(seed)) for seed in range(4))
    for stream in (frames, io.BytesIO(frames)):
        found = decode(stream)
        assert list(found) == [small(seed) for seed in range(4)]
        assert (found.num_read, found.offset, found.tail) == (4, len(frames), 0)
    assert list(decode(b"")) == []


def test_a_torn_tail_is_reported_and_what_came_before_is_read():
    whole, torn = encode(small(0)), encode(small(1))
    for cut in (1, 3, 4, 11, 12, 13, len(torn) // 2, len(torn) - 1):
        found = decode(whole + torn[:cut])
        assert list(found) == [small(0)]
        assert (found.offset, found.tail) == (len(whole), cut)
        assert list(found) == []


def test_damage_is_named_by_frame_and_byte():
    whole = encode(small(0))
    flipped = bytearray(encode(small(1)))
    flipped[40] ^= 1
    for wrong in (
        bytes(flipped),
        b"junk and more junk",
        whole[:4] + struct.pack("<II", 5, zlib.crc32(b"12345")) + b"12345",
    ):
        found = decode(whole + wrong)
        assert next(found) == small(0)
        with pytest.raises(FormatError, match=f"frame 1 at byte {len(whole)}"):
            next(found)


def reframe(record, **changes):
    value = json.loads(zlib.decompress(encode(record)[12:]))
    body = zlib.compress(json.dumps({**value, **changes}).encode())
    return b"ARPO" + struct.pack("<II", len(body), zlib.crc32(body)) + body


def test_an_unknown_schema_names_both_versions():
    with pytest.raises(FormatError, match="schema 7, and this version of arpo reads schema 2"):
        next(decode(reframe(small(), schema=7)))


def test_where_a_result_came_from_is_kept():
    record = small()
    place = next(p for p in record.tree.turns if record.tree.turns[p].calls)
    came = {"cached": True, "shared": True, "fault": "raised KeyError", "attempts": 3, "cost": 0.01, "seconds": 0.5}
    outcome = ToolCallResult(tool="search", status=CallStatus.ERROR, text="KeyError: 'x'", **came)
    record.tree.observations[place] = replace(record.tree.observations[place], outcomes=(outcome,))
    (again,) = decode(encode(record))
    (read,) = again.tree.observations[place].outcomes
    assert {name: getattr(read, name) for name in came} == came


@pytest.mark.parametrize(
    "changes", [{"events": [["huh", "0"]]}, {"turns": [{}]}, {"endings": {"9.9": "finished"}}, {"growth": {}}]
)
def test_a_record_that_holds_nonsense_is_a_format_error(changes):
    with pytest.raises(FormatError, match="frame 0 at byte 0"):
        next(decode(reframe(small(), **changes)))


def test_what_a_model_or_a_tool_wrote_cannot_act():
    record = small()
    place = next(p for p in record.tree.turns if record.tree.turns[p].calls)
    nasty = {"map": {"i": "AAAA"}, "f": "AAAA", "rule": "paper", "place": "0", "array": ["~"], "text": "\ud800\x00</s>"}
    turn = replace(record.tree.turns[place], calls=(Call(name="\x00", arguments=nasty, error="{}"),))
    record.tree.turns[place] = turn
    said = replace(
        record.tree.observations[place],
        outcomes=(ToolCallResult(tool="i", status=CallStatus.ERROR, text='{"map": 1}', cut=True),),
    )
    record.tree.observations[place] = said
    (again,) = decode(encode(record))
    assert again.tree.turns[place] == turn and again.tree.observations[place] == said


def test_what_json_cannot_hold_is_a_format_error():
    for notes in ({"x": object()}, {"x": array("q", [1])}, {"x": {1, 2}}):
        with pytest.raises(FormatError, match="cannot be written"):
            encode(replace(small(), notes=notes))


def test_replay_notices_what_does_not_follow_from_the_events():
    record = small()
    place = next(iter(record.decisions))
    made = record.decisions[place]
    others = {**record.decisions, place: replace(made, decided=replace(made.decided, granted=5))}
    with pytest.raises(FormatError, match="replay decides"):
        replay(replace(record, decisions=others))
    with pytest.raises(FormatError, match="replay decides"):
        replay(replace(record, config=replace(record.config, rule=Never())))
    with pytest.raises(FormatError, match="does not fit"):
        replay(replace(record, events=record.events[1:]))
    with pytest.raises(FormatError, match="replay grows the tree"):
        replay(replace(record, tree=small(2).tree, decisions=record.decisions))


def test_masks_come_back_with_the_credit():
    """A run that does a step again from its records trains the same tokens."""
    tree = random_tree(3)
    mask = {pair: [n % 2 == 0 for n in range(len(tree.tree.turns[pair[0]].tokens))] for pair in [*tree.credit][:2]}
    masked = replace(tree, mask=mask)
    record = replace(small(1), tree=tree.tree, events=(), decisions={}, scores=tree.scored.scores, mask=mask)
    (again,) = decode(encode(replace(record, advantages=tree.advantages, credit=tree.credit)))
    assert again.credited == masked and again.credited.mask == mask


def test_scores_of_another_tree_are_refused():
    grown = grow(World(seed=1), rule=Paper())
    with pytest.raises(ValueError, match="belong"):
        TreeRecord.from_expansion(grown, ScoredTree(small().tree, {}))


@dataclass(frozen=True)
class Own:
    """A user's rule."""

    def __call__(self, tip, stats, random):
        return Decision(wanted=1, score=tip.head)

    def most(self, depth):
        return 1


def test_a_users_rule_is_named_and_handed_to_replay():
    (again,) = decode(encode(small(rule=Own())))
    assert encode(again) == encode(small(rule=Own()))
    with pytest.raises(FormatError, match=r"test_record:Own \(Own\(\)\).*pass the rule to replay"):
        replay(again)
    assert replay(again, rule=Own()) == again.tree
    assert Whim(1) != Own()


def test_heads_of_a_turn_in_the_tree_are_not_stored_twice():
    record = small()
    events = json.loads(zlib.decompress(encode(record)[12:]))["events"]
    heads = [event for event in events if event[0] == "head"]
    assert heads and all(len(event) == 3 for event in heads)
    lost = HeadKnown((0, 0), array("f", [9.0]), (array("f", [8.0]), array("f", [10.0])))
    (again,) = decode(encode(replace(record, events=(lost,))))
    assert again.events == (lost,)


def test_bytes_are_little_endian_on_any_machine():
    text = json.loads(zlib.decompress(encode(small())[12:]))["prompt"]
    assert text == "AQAAAAIAAAADAAAA"
    assert small().tree.turns[0,].role is Role.ROOT and StopReason.FINISHED in small().tree.endings.values()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=2000), min_size=1, max_size=5), st.integers(0, 40))
def test_peek_finds_what_decode_finds(tasks, torn):
    """The slow twin: decode every frame and ask it where it began and what it is of."""
    plain = TreeRecord(
        config=ExpansionConfig(leaves=1, roots=1, rule=Never(), head=1, vocab_size=10, stats=StepStats(step=1), seed=0),
        tree=RolloutTree("", 1, Prompt(tokens=array("i", [1]))),
        events=(),
        decisions={},
    )
    content = b""
    for task in tasks:
        content += encode(replace(plain, tree=RolloutTree(task, 1, plain.tree.prompt)))
    content = content[: len(content) - torn]
    frames, expected = decode(content), []
    while True:
        start = frames.offset
        if (record := next(frames, None)) is None:
            break
        expected.append((start, record.tree.task))
    assert list(decode(content).tasks()) == expected


def test_peek_names_what_is_no_frame():
    with pytest.raises(FormatError, match="frame 0 at byte 0 starts with b'nons'"):
        list(decode(b"nonsense that is long enough").tasks())
    with pytest.raises(FormatError, match="frame 0 at byte 0"):
        list(decode(b"no").tasks())
    assert list(decode(b"AR").tasks()) == list(decode(b"").tasks()) == []
