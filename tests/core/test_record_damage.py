"""Damaged event logs: what is read is right, the rest a clean end or a FormatError, and no length costs memory of its
own."""

import base64
import contextlib
import io
import json
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expansion_world import World, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.core import Paper, TreeRecord, decode, encode, replay
from arpo.core.codec import SCHEMA
from arpo.errors import FormatError

lenient = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def small(seed: int) -> TreeRecord:
    return TreeRecord.from_expansion(
        grow(World(seed=seed, go_on=0.9), rule=Paper(), leaves=4, roots=2), notes={"of": [seed, None]}
    )


RECORDS = [small(seed) for seed in range(3)]
FRAMES = b"".join(map(encode, RECORDS))
VALUE: dict[str, Any] = json.loads(zlib.decompress(encode(RECORDS[0])[12:]))


def reframed(body: bytes) -> bytes:
    return b"ARPO" + struct.pack("<II", len(body), zlib.crc32(body)) + body


def read(raw: bytes) -> list[TreeRecord]:
    """Records until the clean end or the FormatError that names a frame and a byte."""
    frames, found = decode(raw), []
    try:
        for record in frames:
            found.append(record)
    except FormatError as error:
        assert f"frame {len(found)} at byte {frames.offset}" in str(error)
    else:
        assert frames.offset + frames.tail == len(raw)
    return found


@lenient
@given(cut=st.integers(0, len(FRAMES)))
def test_cut_anywhere_the_whole_frames_are_read(cut: int) -> None:
    found = read(FRAMES[:cut])
    assert found == RECORDS[: len(found)]
    ends = [len(b"".join(map(encode, RECORDS[: n + 1]))) for n in range(3)]
    assert len(found) == sum(end <= cut for end in ends)


@lenient
@given(at=st.integers(0, len(FRAMES) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_the_frame_it_is_in_and_those_behind(at: int, bit: int) -> None:
    raw = bytearray(FRAMES)
    raw[at] ^= 1 << bit
    found = read(bytes(raw))
    before = sum(len(b"".join(map(encode, RECORDS[: n + 1]))) <= at for n in range(3))
    assert found == RECORDS[:before]
    if before < 2:  # other frames follow, so no writer was killed there
        with pytest.raises(FormatError, match=f"frame {before} at byte "):
            list(decode(bytes(raw)))


@lenient
@given(raw=st.binary(max_size=64), kept=st.integers(0, len(FRAMES)))
def test_random_bytes_are_no_record(raw: bytes, kept: int) -> None:
    found = read(FRAMES[:kept] + raw)
    assert found == RECORDS[: len(found)]
    assert read(raw) == [] and read(b"ARPO" + raw) == [] and read(reframed(raw)) == []


@pytest.mark.parametrize("size", [0xFFFFFFFF, (1 << 28) + 1, 1 << 28, 100_000_000])
def test_a_damaged_length_costs_no_memory(size: int, tmp_path: Path) -> None:
    raw = encode(RECORDS[0]) + b"ARPO" + struct.pack("<II", size, 0) + b"x" * 1000
    (tmp_path / "x.frames").write_bytes(raw)
    for stream in (io.BytesIO(raw), (tmp_path / "x.frames").open("rb")):
        with stream:
            tracemalloc.start()
            frames = decode(stream)
            if size > 1 << 28:  # no writer was killed in the middle of such a frame
                assert next(frames) == RECORDS[0]
                with pytest.raises(FormatError, match="a frame has at most"):
                    next(frames)
            else:
                assert list(frames) == [RECORDS[0]] and frames.tail == 1012
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
            tracemalloc.stop()


def test_a_body_that_decompresses_without_end_is_not_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arpo.core.record._MAX_BYTES", 1 << 20)
    with pytest.raises(FormatError, match="decompresses to more than"):
        next(decode(reframed(zlib.compress(b" " * (1 << 24)))))
    with pytest.raises(FormatError, match="is truncated"):
        next(decode(reframed(zlib.compress(b"{}" * 1000)[:-9])))


# --- right bytes, wrong values


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


PLACES = [place for place in places(VALUE) if place]
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        [
            "0",
            "0.0",
            "0.0.0.0",
            "-1",
            "1e9",
            "AAAA",
            "AA",
            "\ud800",
            "paper",
            "finished",
            "turn",
            [],
            {},
            [[]],
            {"": None},
        ]
    ),
)


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], new)
    return copy


@lenient
@given(at=st.sampled_from(PLACES), new=odd)
def test_any_value_anywhere_is_a_record_or_a_format_error(at: tuple[Any, ...], new: Any) -> None:
    raw = reframed(zlib.compress(json.dumps(changed(VALUE, at, new)).encode()))
    for record in read(raw):  # what can be read can be asked, too
        with contextlib.suppress(FormatError):
            replay(record)


def test_a_token_that_is_none_is_named() -> None:
    for at in (("prompt",), ("turns", 0, "tokens")):
        tokens = base64.b64encode(array("i", [1, -1]).tobytes()).decode()
        raw = reframed(zlib.compress(json.dumps(changed(VALUE, at, tokens)).encode()))
        with pytest.raises(FormatError, match="byte 0 holds the token -1"):
            list(decode(raw))


@lenient
@given(at=st.sampled_from([place for place in PLACES if isinstance(place[-1], str)]))
def test_a_missing_key_is_a_record_or_a_format_error(at: tuple[Any, ...]) -> None:
    group = VALUE
    for key in at[:-1]:
        group = group[key]
    raw = reframed(
        zlib.compress(json.dumps(changed(VALUE, at[:-1], {k: v for k, v in group.items() if k != at[-1]})).encode())
    )
    read(raw)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, -1, 10**30, "1", None, 1.5, [1], {"a": 1}])
def test_a_schema_that_this_version_does_not_read_is_named(schema: Any) -> None:
    with pytest.raises(FormatError, match=r"frame 0 at byte 0 has record schema .*reads"):
        next(decode(reframed(zlib.compress(json.dumps({**VALUE, "schema": schema}).encode()))))


def test_deeply_nested_json_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="frame 0"):
        next(decode(reframed(zlib.compress(b'{"schema":' + b"[" * 200_000))))


def test_a_log_in_a_file_is_read_to_its_last_whole_frame_wherever_it_is_cut() -> None:
    with tempfile.TemporaryFile() as file:
        for cut in range(0, len(FRAMES), 97):
            file.seek(0)
            file.truncate()
            file.write(FRAMES[:cut])
            file.seek(0)
            found = list(decode(file))
            assert found == RECORDS[: len(found)]


def test_looking_for_the_task_of_a_hostile_frame_takes_neither_the_stack_nor_all_memory():
    """A name of 20 MB, which is 20 kB in the file, once took a gigabyte to find."""
    with pytest.raises(FormatError, match="is not a record"):
        list(decode(reframed(zlib.compress(b"[" * 200_000))).tasks())
    script = """
import resource, sys
from arpo.core import decode
resource.setrlimit(resource.RLIMIT_AS, (700 << 20,) * 2)
print([len(task) for _, task in decode(sys.stdin.buffer.read()).tasks()])
"""
    frame = reframed(zlib.compress(b'{"schema":2,"task":"' + b"a" * (20 << 20) + b'"}'))
    done = subprocess.run([sys.executable, "-c", script], input=frame, capture_output=True, check=False, timeout=60)
    assert done.stdout.decode().strip() == "[20971520]", done.stderr.decode()[-300:]
