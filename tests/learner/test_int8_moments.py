"""Moments of 8 bits: the same training but for rounding, on one rank and on two, saved and taken up."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from test_rank_weights import here, loaded, saved
from test_ranks import small

from arpo.errors import ConfigError
from arpo.learner.config import OptimConfig
from arpo.learner.int8_moments import exact, make_optimizer, rounded

torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra int8")
MODEL = {"vocab": 256}  # embedding and head are of 8,192 numbers, so two ranks have codes too
INT8 = OptimConfig(lr=1e-3, weight_decay=0.1, moments="int8")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="it is there")
def test_without_torchao_the_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.moments.*int8"):
        make_optimizer([torch.nn.Parameter(torch.zeros(2))], INT8)


@torchao
@pytest.mark.slow
def test_what_is_read_comes_to_the_codes_that_were_written() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = make_optimizer([parameter], INT8)
    with torch.compiler.set_stance("force_eager"):
        for _ in range(3):
            parameter.grad = torch.randn(64, 128) * torch.logspace(-6, 0, 64)[:, None]
            optimizer.step()
    for slot in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[parameter][slot]
        again = rounded(optimizer, parameter, slot, exact(moment))
        assert type(again) is type(moment) and torch.equal(again.codes, moment.codes)
        assert torch.allclose(again.scale, moment.scale, rtol=1e-6)


@torchao
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_ranks_train_save_and_take_up(size: int, tmp_path: Path) -> None:
    drive = {kind: tmp_path / kind for kind in ("int8", "float32")}
    after = {}
    for kind, folder in drive.items():
        folder.mkdir()
        optim = INT8.model_copy(update={"moments": kind})
        after[kind] = here(partial(saved, model=MODEL, folder=folder, optim=optim), size, tmp_path)
    moved = [torch.cat([(after[kind][n] - start).flatten() for n, start in _start().items()]) for kind in drive]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.99
    assert not torch.equal(*moved), "moments of 8 bits round"
    for others, tolerance in ((size, 1e-7), (3 - size, 1e-5)):  # other shards have other blocks
        again = here(partial(loaded, model=MODEL, folder=drive["int8"], optim=INT8), others, tmp_path)
        assert max(float((after["int8"][n] - again[n]).abs().max()) for n in again) <= tolerance, others
    taken_up = here(partial(loaded, model=MODEL, folder=drive["int8"]), size, tmp_path)
    assert max(float((after["int8"][n] - taken_up[n]).abs().max()) for n in taken_up) <= 1e-5, "by moments of float32"


def _start() -> dict[str, torch.Tensor]:

    return {name: value.detach().clone() for name, value in small(**MODEL).state_dict().items()}
