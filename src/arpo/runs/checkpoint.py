"""Checkpoints: each is written completely or not at all, the last few are kept, and a damaged one is passed over.

checkpoints/step-000012/
    model/              a Hugging Face folder (safetensors, tokenizer): usable as it is
    optimizer.safetensors, optimizer.json
    state.json          step, data position, validations so far, statistics of the branching rule
    MANIFEST.json       size and checksum of every file

Knows the folders, the manifest and the run's state. Refuses to know the optimizer: the learner writes and reads its own
files.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arpo.errors import CheckpointError, FormatError, first_line
from arpo.foreign import checked, loads, open_file, read_file
from arpo.learner.lora import is_finite
from arpo.runs.atomic import MANIFEST, clear_partial, fault, whole_folder

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "TrainState",
    "fault",
    "newest",
    "open_checkpoint",
    "path_of",
    "save",
]

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stands after step `step`, besides the learner's weights and optimizer."""

    step: int = 0
    position: int = 0
    """Tasks taken since the start, skipped groups included."""
    window: tuple[float, ...] = ()
    """Of the branching rule."""
    outcomes: tuple[tuple[float, float, float], ...] = ()
    """Of past branches, for the rule `spread`."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Running accuracies that this step changed, by task, for the root plan `pass_rate`."""
    best: float | None = None
    """The best validation accuracy."""
    best_step: int = 0
    stale_evaluations: int = 0
    """Validations since the best one."""
    validated: int = 0
    """The last step that was validated."""
    seconds: float = 0.0
    """Of training so far."""
    skipped: int = 0
    """Steps in a row, up to this one, in which an update was skipped: the weights may be broken."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: Path
    state: TrainState = field(compare=False)

    @property
    def model(self) -> Path:
        return self.path / "model"


def path_of(folder: Path, step: int) -> Path:
    """Where under `folder` the checkpoint of `step` lies."""
    return folder / f"step-{step:06d}"


def save(folder: Path, state: TrainState, write: Callable[[Path], None], tokenizer: Any, *, keep: int) -> Checkpoint:
    """Write `folder/step-N`, the learner's part by `write` (`arpo.learner.Learner.snapshot`), then remove all
    checkpoints but the newest `keep` and the best."""
    clear_partial(folder)
    target = path_of(folder, state.step)
    with whole_folder(target) as partial:
        write(partial)
        tokenizer.save_pretrained(partial / "model")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
    _forget(folder, keep, {state.step, state.best_step})
    return Checkpoint(target, state)


def _forget(folder: Path, keep: int, needed: set[int]) -> None:
    for step, path in sorted(_steps(folder).items())[:-keep]:
        if step not in needed:
            shutil.rmtree(path)


def _steps(folder: Path) -> dict[int, Path]:
    return {int(found[1]): path for path in folder.glob("step-*") if (found := _NAME.fullmatch(path.name))}


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint folder at `path`. Raises CheckpointError where it is missing or damaged."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no checkpoint here")
    if wrong := fault(path):
        raise CheckpointError(f"{path}: {wrong}")
    return _read(path)


def newest(folder: Path, *, doubtful: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint under `folder`, and what is wrong with the newer ones that were passed over.

    Weights that are not finite are never sound. Those that came after skipped updates may be broken too: unless
    `doubtful`, they count only where there are no others.
    """
    passed: list[str] = []
    last: tuple[Checkpoint | None, list[str]] | None = None
    for _, path in sorted(_steps(folder).items(), reverse=True):
        if wrong := fault(path) or _not_finite(path / "model"):
            passed.append(f"{path.name}: {wrong}")
            continue
        saved = _read(path)
        if doubtful or not saved.state.skipped:
            return saved, passed
        last = last or (saved, list(passed))
        passed.append(f"{path.name}: it came after updates that were skipped, since their loss was not finite")
    return last or (None, passed)


def _read(path: Path) -> Checkpoint:
    file = path / "state.json"
    try:
        values = loads(read_file(file))
    except (ValueError, FormatError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return Checkpoint(path, state_from(values, file))


def state_from(values: Any, path: Path) -> TrainState:
    """The state that `asdict` made plain values of. Raises CheckpointError, which names the file at `path`."""
    try:
        outcomes = tuple((float(a), float(b), float(c)) for a, b, c in values.get("outcomes", ()))
        return checked(TrainState(**{**values, "window": tuple(values["window"]), "outcomes": outcomes}))
    except (ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise CheckpointError(f"{path} is not of this version ({error!r})") from error


def rates_after(step: int, states: Iterable[Any], path: Path) -> dict[str, float]:
    """The running accuracy by task after `step`, from the states of steps in the file at `path`. Raises
    CheckpointError."""
    rates: dict[str, float] = {}
    for state in (state_from(values, path) for values in states):
        rates |= state.rates if state.step <= step else {}
    return rates


def _not_finite(model: Path) -> str | None:
    """Which weight in the model folder holds NaN or infinity, if one does."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(model.glob("*.safetensors")):
        try:
            open_file(file).close()  # no pipe, which would keep the library waiting
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    if not is_finite(tensors.get_tensor(name)):
                        return f"{name} in {file.name} is not finite"
        except (SafetensorError, FormatError, OSError, RuntimeError) as error:  # RuntimeError: of numbers of 8 bits
            return f"{file.name} cannot be read ({first_line(error)})"
    return None
