"""A run that was killed loses the step under way at most: finished steps are done again from their records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from arpo.core.record import decode
from arpo.display.terminal import Console
from arpo.errors import CheckpointError
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from tiny_project import TinyProject

SHORT = (
    "cold_start=null",
    "loss.entropy_coefficient=0.01",  # which teaches where all rewards are equal
    "train.save_every=2",
    "evaluation.limit=1",
    "evaluation.greedy_limit=0",
)


def start(project: TinyProject, out: Path, *changes: str, resume: bool = False) -> str:
    console = Console(record=True, width=300, quiet=False)
    train(load_recipe(project.recipe, [*SHORT, *changes]), out=out, resume=resume, console=console)
    return console.export_text()


def tensors(folder: Path) -> dict[str, bytes]:
    """Weights and moments."""
    return {
        f"{path.name} {name}": value.numpy().tobytes()
        for path in folder.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }


def as_killed(run: Path, step: int) -> dict[str, bytes]:
    """Make of a finished run one that was killed before it saved `step`. Returns what it had saved."""
    saved = run / "checkpoints" / f"step-{step:06d}"
    contents = tensors(saved)
    shutil.rmtree(saved)
    (run / "summary.json").write_text(json.dumps({**json.loads((run / "summary.json").read_text()), "status": "going"}))
    return contents


def test_a_finished_step_without_a_checkpoint_is_done_again_bit_for_bit(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = ("train.steps=3", "advantage.mask=high_entropy")  # the records keep the mask
    start(tiny_project, run, *changes)
    expected = as_killed(run, 3)
    before = {
        name: (run / name).read_bytes() for name in ("metrics.jsonl", "states.jsonl", "events/step-000003.frames")
    }
    text = start(tiny_project, run, *changes, resume=True)
    assert "done again from the records" in text and "step 3, not saved before" in text
    assert tensors(run / "checkpoints" / "step-000003") == expected and len(expected) > 20
    assert {name: (run / name).read_bytes() for name in before} == before, "it was sampled again"
    assert not (run / "cut").exists()


def another_norm(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[2]["train/grad_norm"] *= 1.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def flipped_byte(run: Path) -> None:
    path = run / "events" / "step-000003.frames"
    raw = path.read_bytes()
    start = [place for place, _ in decode(raw).tasks()][-1]
    path.write_bytes(raw[: start + 40] + bytes([raw[start + 40] ^ 0xFF]) + raw[start + 41 :])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_norm, r"the update of step 3, done again from .*step-000003\.frames, has grad_norm"),
        (flipped_byte, r"the update of step 3 cannot be done again: .*step-000003\.frames: frame \d+ at byte \d+"),
    ],
)
def test_an_update_that_cannot_be_what_it_was_is_refused_and_then_sampled_again(
    change: Callable[[Path], None], words: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start(tiny_project, run, "train.steps=3")
    as_killed(run, 3)
    change(run)
    with pytest.raises(CheckpointError, match=words):
        start(tiny_project, run, "train.steps=3", resume=True)
    text = start(tiny_project, run, "train.steps=3", resume=True)
    assert "done again" not in text
    assert (run / "checkpoints" / "step-000003" / "MANIFEST.json").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
