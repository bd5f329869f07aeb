"""Cold starts that were made before, and what was measured on them, so that a second run need not repeat them.

    <cache>/cold-starts/<key>/model/            trained weights
                              evaluation/*.json  results of `evaluate`, named by what was asked

The key is a hash of everything that decides the weights.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arpo.evaluation.results import Results, read_results
from arpo.run import Run, plain
from arpo.train.sources import cache_folder

FORMAT = 1  # raised when what a cold start does changes


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _decides_weights(run: Run) -> list[Any]:
    model = {name: value for name, value in plain(run.model).items() if name != "device"}
    limits = [run.rollout.max_calls, run.rollout.at_call_limit, run.rollout.branch_tokens]
    optim = [run.optim.betas, run.optim.eps, run.optim.weight_decay, run.optim.grad_clip]
    parts = [run.chat, run.tools, run.cold_start, run.data.train]
    return [FORMAT, model, limits, optim, *map(plain, parts)]


class Start:
    """The cache entry of a run's starting point. A run without a cold start starts from its source, with the same cache."""

    def __init__(self, run: Run) -> None:
        self.key = digest(_decides_weights(run))
        self.path = cache_folder() / "cold-starts" / self.key
        self.run = run

    @property
    def model(self) -> Path | None:
        """The trained weights, where they are there."""
        path = self.path / "model"
        return path if (path / "config.json").exists() or (path / "adapter_config.json").exists() else None

    def keep(self, model: Any, tokenizer: Any) -> Path:
        """Store trained weights; appears whole or not at all."""
        partial = self.path.with_name(f".{self.key}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        self.path.mkdir(parents=True, exist_ok=True)
        if self.model is None:
            shutil.rmtree(self.path / "model", ignore_errors=True)
            os.replace(partial, self.path / "model")
        else:
            shutil.rmtree(partial)
        return self.path / "model"

    def results(self, name: str, asked: Mapping[str, Any]) -> Results | None:
        """What was measured on this start under the same question, or None."""
        path = self._results_path(name, asked)
        return read_results(path) if path.exists() else None

    def keep_results(self, name: str, asked: Mapping[str, Any], results: Results) -> None:
        written = results.write(self.path / "evaluation" / "new")
        target = self._results_path(name, asked)
        os.replace(written, target)

    def _results_path(self, name: str, asked: Mapping[str, Any]) -> Path:
        rollout, reward = plain(self.run.rollout), plain(self.run.reward)
        limits = {key: rollout[key] for key in ("max_calls", "turn_tokens", "branch_tokens", "at_call_limit")}
        key = digest(asked, limits, reward, plain(self.run.data.test), plain(self.run.engine))
        return self.path / "evaluation" / f"{name}-{key}.json"
