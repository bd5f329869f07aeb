"""The cache of cold starts and of evaluations of them, so that a second run need not repeat either.

    <cache>/cold-starts/<key>/model/             trained weights, a whole folder
                              evaluation/*/      evaluations, named by what was asked

The key is a hash of everything that decides the weights, files included. A damaged entry counts as none and is made
anew.

Some cold starts come with arpo (`bundled/`, written by scripts/write_cold_start.py): LoRA's matrices, with the key that
they were made under. A run whose key it is starts from them unless its recipe says otherwise.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arpo.core.credit import CreditedTree
from arpo.errors import ConfigError
from arpo.evaluation.questions import EvalSpec
from arpo.evaluation.results import EvalResults, read_results
from arpo.files import PARTIAL, expanded
from arpo.import_path import is_import_path
from arpo.models.sources import cache_folder, fetch
from arpo.recipe.run import RunConfig, plain
from arpo.runs.atomic import MANIFEST, clear_partial, fault, whole_folder
from arpo.runs.code import code_of
from arpo.runs.fingerprint import without_limits
from arpo.runs.lock import Lock
from arpo.search import words
from arpo.sft.traces import read_traces
from arpo.tasks.in_memory import InMemoryTasks

BUNDLED = Path(__file__).parent / "bundled"
FORMAT = 2  # raised when what a cold start does changes
GROWTH = ("leaves", "roots", "root_cap", "head", "rule", "leftover", "temperature", "retries", "deadline_s")
"""Keys of `rollout` that decide no answer of an evaluation, which samples single trajectories at a temperature of its
own."""


class SFTCache:
    """The cache entry of the model that a run's training starts from: its cold start, or its source where it has none.

    `bundled`: whether a cold start that comes with arpo may be used, where the recipe allows it.
    """

    def __init__(self, run: RunConfig, *, bundled: bool = True) -> None:
        self.key = digest(FORMAT, _decides_weights(run))
        self.path = cache_folder() / "cold-starts" / self.key
        self.run = run
        allowed = bundled and run.cold_start is not None and run.cold_start.bundled
        self.bundled = (
            next((folder for folder, key in bundled_checkpoints() if key == self.key), None) if allowed else None
        )

    @property
    def model(self) -> Path | None:
        """The trained weights, or None: those in the cache where they are complete, else bundled ones."""
        path = self.path / "model"
        return path if fault(path) is None else self.bundled

    def check_writable(self) -> None:
        """Raises ConfigError where nothing can be stored: call this before making something that takes long."""
        try:
            with self._locked():
                pass
        except OSError as error:
            hint = "Name another folder in the environment variable ARPO_CACHE"
            raise ConfigError(
                f"the cache cannot be written ({error.strerror})", where=str(self.path), hint=hint
            ) from error

    def keep(self, save_model: Callable[[Path], None], tokenizer: Any) -> Path:
        """Store trained weights, which `save_model` writes into a folder, unless another process was first. Removes
        evaluations of damaged ones."""
        with self._locked():
            if self.model in (None, self.bundled):
                shutil.rmtree(self.path / "evaluation", ignore_errors=True)
                with whole_folder(self.path / "model") as folder:
                    save_model(folder)
                    tokenizer.save_pretrained(folder)
        return self.path / "model"

    def evaluation(self, spec: EvalSpec, target: Path) -> EvalResults | None:
        """Copy what was measured on this start under `spec` to the folder `target`, instead of what is there; None
        where nothing sound was kept."""
        kept = self._evaluation_path(spec)
        if fault(kept) is not None:
            return None
        shutil.rmtree(target, ignore_errors=True)
        partial = target.with_name(f"{PARTIAL}{target.name}")
        shutil.copytree(kept, partial, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        partial.rename(target)
        return read_results(target)

    def keep_evaluation(self, spec: EvalSpec, folder: Path) -> None:
        """Store the evaluation in `folder`, unless infrastructure failed for a sample: then another run may measure
        better."""
        if not any(each.failures for each in read_results(folder).benchmarks):
            with self._locked(), whole_folder(self._evaluation_path(spec)) as partial:
                shutil.copytree(
                    folder, partial, ignore=shutil.ignore_patterns("lock", f"{PARTIAL}*"), dirs_exist_ok=True
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the entry's lock. Removes unfinished files: a killed process left them."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(self.path / "lock", timeout_s=-1)
        try:
            for folder in (self.path, self.path / "evaluation"):
                clear_partial(folder)
            yield
        finally:
            lock.release()

    def _evaluation_path(self, spec: EvalSpec) -> Path:
        return self.path / "evaluation" / f"{spec.name}-{digest(spec.key, _decides_answers(self.run))}"


def bundled_checkpoints() -> list[tuple[Path, str]]:
    """The cold starts that come with arpo: (folder of LoRA's matrices, key)."""
    return [(file.parent, json.loads(file.read_text())["key"]) for file in sorted(BUNDLED.glob("*/cold_start.json"))]


def tokens_digest(trees: Sequence[CreditedTree]) -> str:
    """A digest of all tokens of `trees`, which are traces: prompt, tools, format and tokenizer decide it."""
    return digest([[segment.tokens.tolist() for segment in tree.tree.path(tree.tree.leaves()[0])] for tree in trees])


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _decides_weights(run: RunConfig) -> list[Any]:
    placing = ("device", "gradient_checkpointing", "head_chunk", "offload", "replicas")
    model = _set({name: value for name, value in plain(run.model).items() if name not in placing})
    made = is_import_path(run.model.source)
    parts: list[Any] = [model, fetch(run.model.source).name if made else _stamp(run.model.source)]
    if run.cold_start is None:
        return parts
    limits = [run.rollout.max_calls, run.rollout.at_call_limit]
    optim = [run.optim.betas, run.optim.weight_decay, run.optim.grad_clip, run.optim.moments]
    if is_import_path(run.cold_start.traces):
        # what the function returns, since all that it depends on cannot be seen
        traces: Any = hashlib.sha256(repr(read_traces(run.cold_start, run.data.train)).encode()).hexdigest()
    elif run.cold_start.traces == "atlas":
        traces = plain(run.data.train.options.get("families"))
    else:
        traces = _stamp(run.cold_start.traces)
    cold_start = {name: value for name, value in plain(run.cold_start).items() if name != "bundled"}
    return [*parts, cold_start, traces, plain(run.chat), _tools(run), *_environment(run), limits, optim]


def _set(value: Any) -> Any:
    """`value` without keys that are null, so that a setting added to arpo changes no key where nobody uses it."""
    if not isinstance(value, dict):
        return value
    return {name: _set(item) for name, item in value.items() if item is not None}


def _decides_answers(run: RunConfig) -> list[Any]:
    """What decides the answers besides the weights and the evaluation's settings."""
    data = getattr(run.data, run.evaluation.split)
    rollout = {key: value for key, value in plain(run.rollout).items() if key not in GROWTH}
    engine = {key: plain(run.engine)[key] for key in ("kind", "dtype", "deterministic")}
    tasks = [plain(data), _stamp(data.source), _code(plain(data))] if data is not None else None
    reward, environment = plain(run.reward), _environment(run)
    return [plain(run.chat), _tools(run), environment, reward, _code(reward), rollout, _code(rollout), tasks, engine]


def _tools(run: RunConfig) -> list[Any]:
    tools = [without_limits(tool) for tool in plain(run.tools.offered)]
    documents = [(_stamp(str(tool["options"]["documents"])), words.VERSION) for tool in tools if _has_documents(tool)]
    return [tools, documents, _code(tools)]


def _environment(run: RunConfig) -> list[Any]:
    """The environment and its code; empty where there is none."""
    return [] if run.environment is None else [plain(run.environment), _code(plain(run.environment))]


def _has_documents(tool: Any) -> bool:
    return isinstance(tool, dict) and "documents" in tool.get("options", ())


def _stamp(source: str | InMemoryTasks) -> Any:
    """A value that changes with a file, a folder or the rows that a program passed; None for a source that is none of
    these (a Hub id, a package, a built-in)."""
    if isinstance(source, InMemoryTasks):
        return hashlib.sha256(repr(source.items).encode()).hexdigest()
    path = expanded(source)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return None


def _code(value: Any) -> list[tuple[str, str]]:
    return sorted(code_of(value).items())
