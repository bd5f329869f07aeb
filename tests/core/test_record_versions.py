"""A record as an earlier commit wrote it: `records/` holds a file of two trees, written anew only when the schema
changes."""

import json
import struct
import zlib
from dataclasses import fields
from pathlib import Path

import pytest
from expansion_world import World, grow

from arpo.core import Paper, TreeRecord, decode, replay
from arpo.core.codec import SCHEMA
from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import FormatError

HERE = Path(__file__).parent
STORED = HERE / "records" / f"schema-{SCHEMA}.frames"
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


def test_a_stored_record_is_read_and_replays() -> None:
    raw = STORED.read_bytes()
    assert [value["schema"] for value in values(raw)] == [SCHEMA, SCHEMA]
    records = list(decode(raw))
    assert [(len(record.tree.turns), len(record.tree.leaves())) for record in records] == [(16, 4), (13, 4)]
    assert [record.notes["of"] for record in records] == [[0, None], [1, None]]
    assert replay(records[1]) == records[1].tree
    for seed, record in enumerate(records):
        now = TreeRecord.from_expansion(grow(World(seed=seed, go_on=0.9), rule=Paper(), leaves=4, roots=2))
        assert record.tree.turns == now.tree.turns and record.decisions == now.decisions
    (outcome,) = [
        outcome for seen in records[0].tree.observations.values() for outcome in seen.outcomes if outcome.fault
    ]
    assert outcome == ToolCallResult(
        tool="search", status=CallStatus.ERROR, text="KeyError: 'x'", cut=True, fault="raised KeyError"
    )
    assert (outcome.seconds, outcome.cached, outcome.shared, outcome.attempts, outcome.cost) == (
        0.5,
        True,
        True,
        3,
        0.01,
    )


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (
            SCHEMA - 1,
            f"has record schema {SCHEMA - 1}, .* reads schema {SCHEMA}: read it with the older version that wrote it$",
        ),
        (
            SCHEMA + 1,
            f"has record schema {SCHEMA + 1}, .* reads schema {SCHEMA}: read it with the newer version that wrote it$",
        ),
        ("2", f"has record schema '2', and this version of arpo reads schema {SCHEMA}$"),
        (None, f"has record schema None, and this version of arpo reads schema {SCHEMA}$"),
    ],
)
def test_another_schema_is_refused_with_both_versions(schema: object, why: str) -> None:
    """Whole records before it are read first."""
    raw = STORED.read_bytes()
    records = decode(raw + frame({**values(raw)[0], "schema": schema}))
    next(records), next(records)
    with pytest.raises(FormatError, match=f"^frame 2 at byte {len(raw)} {why}"):
        next(records)


def test_the_page_about_records_names_the_schema_and_all_of_an_outcome() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"current schema is {SCHEMA}" in text
    assert not [field.name for field in fields(ToolCallResult) if f"`{field.name}`" not in text]
