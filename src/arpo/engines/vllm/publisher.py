"""Writes weights where vLLM reads them: a Hugging Face folder in shared memory, or in a folder that the servers see
too.

Knows state dicts and safetensors. Refuses to know vLLM. Only the newest folder is kept; what a killed run left goes at
the next start.
"""

import copy
import json
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arpo.engines.vllm.adapters import KEPT
from arpo.engines.vllm.transport import Parts, WeightSnapshot
from arpo.errors import ConfigError

PREFIX = "arpo-weights-"
SHARD = 2 << 30  # bytes a file: what is copied to main memory at once
SHARED_MEMORY = Path("/dev/shm")


class Publisher:
    """model: what the weights belong to (its config is written beside them). dtype: what they are written in; None: as
    they are. folder: where; None: shared memory where it has room, else the temporary folder. unties: write a head that
    is tied to the embeddings once more, as a matrix of its own. offers: weights go to vLLM without a file, and to a
    folder only where one is needed."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        dtype: torch.dtype | None = None,
        folder: Path | None = None,
        unties: bool = False,
        offers: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.dtype, self.folder, self.unties = model, tokenizer, dtype, folder, unties
        self.offers = offers
        self.run = secrets.token_hex(4)
        self._home: Path | None = None
        self._num_adapters = 0
        self._kept: list[WeightSnapshot] = []  # the newest last

    def adapters(self, state: Any, version: int, base: Path) -> WeightSnapshot:
        """The adapters of `state` alone, which add to the weights in the folder `base`."""
        folder = self._folder(version, sum(_size(value, self.dtype) for value in self.model.parameters()))
        try:
            state.write_adapters(folder)
        except OSError as error:
            raise self._no_room(error) from error
        below = WeightSnapshot(base, 0, f"{self.run}/base")
        self._num_adapters += 1  # vLLM knows adapters by name: no name twice, whatever the version
        return WeightSnapshot(folder, version, f"{self.run}-{self._num_adapters}/{version}", base=below)

    def write(self, state: Any, version: int) -> WeightSnapshot:
        """`state` (names to tensors, or a folder that holds them already) as `version`. The folder before it may still
        be read: `forget_before` ends it. Raises ConfigError where there is no room."""
        label = f"{self.run}/{version}"
        return WeightSnapshot(
            self._written(state, version) if isinstance(state, Mapping) else Path(state), version, label
        )

    def publish(self, state: Any, version: int) -> WeightSnapshot:
        """`state` for an engine that runs: offered, or written."""
        return self.offer(state, version) if self.offers else self.write(state, version)

    def offer(self, state: Any, version: int) -> WeightSnapshot:
        """The same for `WeightSender`. `WeightSnapshot.written` writes a folder where a server needs one, as long as
        `state` does not change."""
        label, device = f"{self.run}/{version}", next(self.model.parameters()).device
        if not isinstance(state, Mapping):
            return WeightSnapshot(Path(state), version, label, parts=partial(_read, Path(state)), device=device)
        write = partial(self._written, state, version)
        if shapes := getattr(state, "shapes", None):
            device, parts = getattr(state, "device", device), partial(self._gathered, state)
            named = partial(self._parts, shapes)
            return WeightSnapshot(None, version, label, write=write, parts=parts, shapes=named, device=device)
        return WeightSnapshot(None, version, label, write=write, parts=partial(self._parts, state), device=device)

    async def keep(self, published: WeightSnapshot) -> None:
        """The tensors of `published` are about to change: it keeps them as they are now."""
        folder = await published.written()
        if published.parts is not None:
            published.parts = partial(_read, folder)

    def _written(self, state: Mapping[str, Tensor], version: int) -> Path:
        shapes = getattr(state, "shapes", state)
        folder = self._folder(version, sum(_size(value, self.dtype) for value in shapes.values()))
        try:
            self._write_config(folder)
            if hasattr(state, "write"):  # sharded weights: the learner's ranks write them
                state.write(folder, self.dtype, unties=self.unties)
                return folder
            names: dict[str, str] = {}
            for number, shard in enumerate(self._shards(state)):
                file = f"model-{number:05}.safetensors"
                _save(shard, folder / file)
                names |= dict.fromkeys(shard, file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        except OSError as error:
            raise self._no_room(error) from error
        return folder

    def _folder(self, version: int, size: int) -> Path:
        """A new folder, where there is room for weights of `size` bytes."""
        try:
            if self._home is None:
                self._home = self._make_home(size)
                weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)  # also at the interpreter's end
            folder = Path(tempfile.mkdtemp(prefix=f"{version:06}-", dir=self._home))
            folder.chmod(0o755)
        except OSError as error:
            raise self._no_room(error) from error
        return folder

    def _no_room(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"new weights cannot be written for vLLM: {error}",
            where="engine.vllm.weights",
            value=str(self._home or self.folder or "null"),
            hint="Name a folder with room for the whole model twice",
        )

    def keep_only(self, published: WeightSnapshot) -> None:
        """Remove the weights before `published`, which every server has loaded, but for what one is being started
        from, and the newest adapters, with which requests may be in flight."""
        self._kept = [*(each for each in self._kept if each is not published), published]
        late = {id(each) for each in [each for each in self._kept if each.base is not None][-KEPT:]}
        stays = [each for each in self._kept if each.readers or each is published or id(each) in late]
        folders = {each.folder for each in stays}
        for each in self._kept:
            if each.folder and each.folder not in folders and self._home and self._home in each.folder.parents:
                shutil.rmtree(each.folder, ignore_errors=True)
        self._kept = stays

    def close(self) -> None:
        """Remove all that was written."""
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def _make_home(self, size: int) -> Path:
        name = f"{PREFIX}{os.getpid()}-"
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            home = Path(tempfile.mkdtemp(prefix=name, dir=self.folder))
            home.chmod(0o755)  # servers may be another user's
            return home
        memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else None
        for place in filter(None, (memory, Path(tempfile.gettempdir()))):
            _remove_dead(place)
        roomy = memory is not None and shutil.disk_usage(memory).free > 2.5 * size and _memory_left() > 2.5 * size
        return Path(tempfile.mkdtemp(prefix=name, dir=memory if roomy else None))

    def _write_config(self, folder: Path) -> None:
        from transformers.dynamic_module_utils import custom_object_save

        config = copy.deepcopy(self.model.config)
        config.architectures = config.architectures or [type(self.model).__name__]
        if self.unties:
            config.tie_word_embeddings = False
        if brings_code(self.model):
            custom_object_save(self.model, folder, config)
        config.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def _shards(self, state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """In main memory, of about 2 GiB each, under the names of a checkpoint."""
        shard: dict[str, Tensor] = {}
        size, seen = 0, set[int]()
        for name, value, dtype in self._parts(state):
            here = value.detach().to("cpu", dtype)
            shard[name] = (here.clone() if here.data_ptr() in seen else here).contiguous()  # a file shares no memory
            seen.add(here.data_ptr())
            size += _size(value, dtype)
            if size >= SHARD:
                yield shard
                shard, size = {}, 0
        if shard:
            yield shard

    def _parts(self, state: Mapping[str, Tensor]) -> Parts:
        """Every tensor of a checkpoint and the numbers to write it in; none twice, unless `unties`."""
        seen = set()
        for name, value in _checkpoint_names(self.model, dict(state)).items():
            place = (value.device, value.data_ptr() or id(value), value.shape, value.stride())
            if value.numel() and place in seen and not self.unties:
                continue
            seen.add(place)
            yield name, value, self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype

    def _gathered(self, state: Any) -> Parts:
        """`_parts` of sharded weights, each gathered as its turn comes."""
        names = {id(value): name for name, value in state.shapes.items()}
        for name, value, dtype in self._parts(state.shapes):
            yield name, state.gathered(names[id(value)], dtype), dtype


def brings_code(model: Any) -> bool:
    """Whether the model or its configuration is of code that came with it, which the recipe trusts."""
    return any(type(part).__module__.startswith("transformers_modules.") for part in (model, model.config))


def _checkpoint_names(model: Any, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` as the model's checkpoints have it, which is what vLLM reads: transformers 5 loads some models under
    other names."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, state)  # type: ignore[no-any-return]


def _read(folder: Path) -> Parts:
    """The tensors of a folder, as they are."""
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(path).items():
            yield name, value, value.dtype


def _save(shard: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(shard, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _size(value: Tensor, dtype: torch.dtype | None) -> int:
    return value.numel() * (dtype if dtype is not None and value.is_floating_point() else value.dtype).itemsize


def _memory_left() -> int:
    """Bytes of main memory that are free: shared memory is taken from it."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _remove_dead(place: Path) -> None:
    """Remove what processes that are gone left in `place`."""
    for folder in place.glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdigit() and not _alive(int(number)) and os.access(folder, os.W_OK):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
