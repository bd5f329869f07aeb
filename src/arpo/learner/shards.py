"""Safetensors that ranks write and read together, each its own rows: no rank ever holds a whole tensor of another's.

A tensor's rows lie one after another in a file, and FSDP2 gives each rank consecutive rows, so a rank's shard is one
range of bytes, whose place follows from shapes alone. Files are the same whatever the number of ranks that wrote them.
Knows the format and DTensors of rows. Refuses to know models and optimizers.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from arpo.errors import CheckpointError, first_line
from arpo.foreign import open_file

FILE_BYTES = 5 * 10**9
"""A folder's tensors are spread over files of about this size, as transformers does."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A rank's part of a tensor: `value` are the rows from `first` on of a tensor of `shape`, to be written in
    `dtype`."""

    value: Tensor
    first: int
    shape: tuple[int, ...]
    ours: bool
    """Whether this rank is the one that writes them."""
    dtype: torch.dtype

    @classmethod
    def shared(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> "Rows":
        """This rank's rows of `tensor`, in the same memory. dtype: None for the tensor's own."""
        first, ours = _place(tensor)
        return cls(_local(tensor.detach()), first, tuple(tensor.shape), ours, dtype or tensor.dtype)

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor, as it is written."""
        return self.dtype.itemsize * _count(self.shape)

    @classmethod
    def copied(cls, tensor: Tensor) -> "Rows":
        """A copy of this rank's rows of `tensor`, in main memory."""
        shared = cls.shared(tensor)
        return replace(shared, value=shared.value.to("cpu", copy=True).contiguous())


def write(folder: Path, name: str, tensors: Mapping[str, Rows], *, first_rank: bool) -> None:
    """Write this rank's rows of all `tensors` to `folder/NAME.safetensors`, or to several files and an index. All ranks
    call it with the same names in the same order; `first_rank` writes the headers. A file is whole when all have
    returned."""
    files = _files(name, tensors)
    for file, members in files.items():
        header = _header({each: tensors[each] for each in members})
        descriptor = os.open(folder / file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if first_rank:
                _write_at(descriptor, 0, len(header).to_bytes(8, "little") + header)
            start = 8 + len(header)
            for each in members:
                rows = tensors[each]
                if rows.ours:  # one tensor at a time is there as it is written
                    own = rows.value.to("cpu", rows.dtype).contiguous().flatten().view(torch.uint8)
                    at = start + rows.first * rows.dtype.itemsize * _count(rows.shape[1:])
                    _write_at(descriptor, at, own.numpy())
                start += rows.num_bytes
        finally:
            os.close(descriptor)
    if first_rank and len(files) > 1:
        places = {each: file for file, members in files.items() for each in members}
        total = sum(rows.num_bytes for rows in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=1))


class SafetensorsFolder:
    """All safetensors under `folder` whose names start with `name`, by tensor. Used as a context."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder, self.name = folder, name
        self._stack = ExitStack()
        self._files: dict[str, object] = {}

    def __enter__(self) -> "SafetensorsFolder":
        for path in sorted(self.folder.glob(f"{self.name}*.safetensors")):
            open_file(path).close()  # no pipe, which would keep the library waiting
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} cannot be read ({first_line(error)})") from error
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read_into(self, name: str, target: Tensor) -> None:
        """Copy this rank's rows of the tensor `name` into `target`. Raises CheckpointError where its shape is
        another."""
        part = self._files[name].get_slice(name)  # type: ignore[attr-defined]
        shape = tuple(part.get_shape())
        if shape != tuple(target.shape):
            raise CheckpointError(
                f"{self.folder}: {name} is of another model: its shape is {shape}, not {tuple(target.shape)}"
            )
        own = _local(target.detach())
        first, _ = _place(target)
        own.copy_(part[first : first + len(own)] if shape else part[...])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _place(tensor: Tensor) -> tuple[int, bool]:
    """The number of this rank's first row, and whether it writes them: of replicas the first does."""
    if not isinstance(tensor, DTensor):
        return 0, not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    first, ours = 0, True
    for dimension, placement in enumerate(tensor.placements):
        number = tensor.device_mesh.get_local_rank(dimension)
        if isinstance(placement, Shard):
            assert placement.dim == 0, placement
            first = min(number * -(-tensor.shape[0] // tensor.device_mesh.size(dimension)), tensor.shape[0])
        else:
            ours = ours and number == 0
    return first, ours


def _files(name: str, tensors: Mapping[str, Rows]) -> dict[str, list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for each, rows in tensors.items():
        here = rows.num_bytes
        if files[-1] and size + here > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(each)
        size += here
    if len(files) == 1:
        return {f"{name}.safetensors": files[0]}
    return {f"{name}-{number:05}-of-{len(files):05}.safetensors": each for number, each in enumerate(files, 1)}


def _header(tensors: Mapping[str, Rows]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, rows in tensors.items():
        end = start + rows.num_bytes
        entries[name] = {"dtype": _NAMES[rows.dtype], "shape": rows.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _write_at(descriptor: int, offset: int, content: object) -> None:
    view = memoryview(content).cast("B")  # type: ignore[arg-type]
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
