"""Records of earlier versions, as those wrote them: files in `records/`, one a schema, two trees each. They are never written anew.

A schema that is added gets a file there, written when it is the current one.
"""

import json
import struct
import zlib
from dataclasses import fields
from pathlib import Path

import pytest
from expansion_world import World, grow

from arpo.core import Paper, TreeRecord, decode, encode, replay
from arpo.core.codec import READABLE, SCHEMA
from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import FormatError

HERE = Path(__file__).parent
STORED = {schema: HERE / "records" / f"schema-{schema}.frames" for schema in READABLE}
DOCS = HERE.parents[1] / "docs" / "records.md"


def values(raw: bytes) -> list[dict[str, object]]:
    """The JSON of every frame."""
    found = []
    while raw:
        _, length, _ = struct.unpack_from("<4sII", raw)
        found.append(json.loads(zlib.decompress(raw[12 : 12 + length])))
        raw = raw[12 + length :]
    return found


def frame(value: dict[str, object]) -> bytes:
    body = zlib.compress(json.dumps(value).encode())
    return b"ARPO" + struct.pack("<II", len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize("schema", READABLE)
def test_what_an_earlier_version_wrote_is_read_and_replays(schema: int) -> None:
    raw = STORED[schema].read_bytes()
    assert [value["schema"] for value in values(raw)] == [schema, schema]
    records = list(decode(raw))
    assert [(len(record.tree.turns), len(record.tree.leaves())) for record in records] == [(16, 4), (13, 4)]
    assert [record.notes["of"] for record in records] == [[0, None], [1, None]]
    assert replay(records[1]) == records[1].tree
    for seed, record in enumerate(records):
        now = TreeRecord.from_expansion(grow(World(seed=seed, go_on=0.9), rule=Paper(), leaves=4, roots=2))
        assert record.tree.turns == now.tree.turns and record.decisions == now.decisions


def test_what_a_schema_lacks_has_its_default() -> None:
    (first, _) = decode(STORED[1].read_bytes())
    outcomes = [outcome for seen in first.tree.observations.values() for outcome in seen.outcomes]
    assert outcomes and all((o.shared, o.fault, o.attempts, o.cost) == (False, "", 1, 0.0) for o in outcomes)
    (second, _) = decode(STORED[2].read_bytes())
    (outcome,) = [outcome for seen in second.tree.observations.values() for outcome in seen.outcomes if outcome.fault]
    assert outcome == ToolCallResult(
        tool="search", status=CallStatus.ERROR, text="KeyError: 'x'", cut=True, fault="raised KeyError"
    )
    assert (outcome.seconds, outcome.cached, outcome.shared, outcome.attempts, outcome.cost) == (0.5, True, True, 3, 0.01)


def test_what_is_read_is_written_in_todays_schema() -> None:
    (first, _) = decode(STORED[1].read_bytes())
    (value,) = values(encode(first))
    assert value["schema"] == SCHEMA == max(READABLE)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (0, "has record schema 0, and this version of arpo reads schemas 1 and 2$"),
        (SCHEMA + 1, f"has record schema {SCHEMA + 1}, and this version of arpo reads schemas 1 and 2: a newer version wrote it$"),
        ("2", "has record schema '2', and this version of arpo reads schemas 1 and 2$"),
        (None, "has record schema None, and this version of arpo reads schemas 1 and 2$"),
    ],
)
def test_another_schema_is_refused_with_both_versions(schema: object, why: str) -> None:
    """After whole records of a schema that is read: those are had first."""
    raw = STORED[SCHEMA].read_bytes()
    records = decode(raw + frame({**values(raw)[0], "schema": schema}))
    next(records), next(records)
    with pytest.raises(FormatError, match=f"^frame 2 at byte {len(raw)} {why}"):
        next(records)


def test_the_page_about_records_names_the_schema_and_all_of_an_outcome() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"current schema is {SCHEMA}" in text
    assert not [field.name for field in fields(ToolCallResult) if f"`{field.name}`" not in text]
