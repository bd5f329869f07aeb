"""The small job of `soak.py`: a model of 40,000 weights that learns to ask one tool, and dies where it is told.

`SOAK_KILL="tool:7"` kills the process (SIGKILL) at the seventh tool call; other points are below. Nothing in arpo knows
of it: the job's own tool, reward and engine die, the model's forward hook does, or Python's audit events tell that a
file is touched.
"""

import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.engines import Chunk, SamplingParams
from arpo.engines.base import EngineWrapper
from arpo.engines.config import EngineConfig
from arpo.engines.local import LocalEngine
from arpo.engines.scripted import ScriptedEngine
from arpo.tasks import Task
from tiny_project import write_tiny_model

# Counted; besides: "cold start" (its updates, then "keeping"), "log", "random".
POINTS = ("sampling", "tool", "scoring", "update", "checkpoint", "files", "tensorboard")
COLD_STEPS = 80
ENGINES = ("scripted", "exact", "ahead")  # the last: scripted too, with sampling ahead of training
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = [
    "<think>I ask the tool.</think><parity>17</parity>\n<result>odd</result>\n"
    "<answer>odd</answer><answer>even</answer>",
    "system user assistant Parity of 0 1 2 3 4 5 6 7 8 9. Call between tags, then write your answer. I ask it "
    'number: {} "',
]
RECIPE = """\
name: soak
seed: 5
model: {{source: {folder}/model, device: cpu, dtype: float32}}
data:
  train: {{source: {folder}/train.jsonl}}
  validation: {{source: {folder}/validation.jsonl}}
  test: {{source: {folder}/test.jsonl}}
chat: {{format: tags, result_tokens: 12, require: []}}
tools: ["soak_job:parity"]
reward: {{use: "soak_job:score"}}
engine: {{kind: "soak_job:{engine}", dtype: float32, deterministic: {deterministic}, slots: 16}}
rollout: {{leaves: 3, roots: 2, head: 2, max_calls: 2, turn_tokens: 20, branch_tokens: 160}}
optim: {{lr: 1.0e-3}}
train: {{steps: 5, tasks_per_step: 2, max_staleness: {most}, token_budget: 2048,
  save_every: 2, keep_last: 1, eval_every: 2, eval_limit: 2}}
cold_start: {{traces: {folder}/traces.jsonl, num_traces: null, batch: 20, steps: {cold_steps}, lr: 2.0e-2}}
evaluation: {{limit: 2, greedy_limit: 1}}
"""

reached: Counter[str] = Counter()


def reach(point: str) -> None:
    reached[point] += 1
    if os.environ.get("SOAK_KILL") == f"{point}:{reached[point]}":
        os.kill(os.getpid(), signal.SIGKILL)


# --- what the job is made of


def parity(number: int) -> str:
    """Parity of a number.

    Args:
        number: which
    """
    reach("tool")
    return word(number)


def score(task: Task, said: Transcript) -> Score:
    """Part of it depends on the text, so that groups are seldom equal."""
    reach("scoring")
    right = float(said.answer in task.answers)
    return Score(reward=0.7 * right + 0.3 * (len(said.turns[-1].text) % 5) / 5, accuracy=right)


class Mortal(EngineWrapper):
    """An engine that can die between two chunks."""

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        async with aclosing(self.engine.sample(prompt, params)) as chunks:
            async for chunk in chunks:
                reach("sampling")
                yield chunk


def scripted(_config: EngineConfig, model: Any, tokenizer: Any) -> Mortal:
    """Asks the tool, then answers with what it said or, by the request's seed, with something else."""

    def play(prompt: Sequence[int], params: SamplingParams) -> str:
        text = tokenizer.decode(prompt).split("Parity of ")[-1]
        number = int(text.split("<|im_end|>")[0])
        random = Random(params.seed)
        if "<parity>" not in text and random.random() < 0.8:
            return f"<think>{'I ask. ' * random.randrange(3)}</think><parity>{number}</parity>"
        return f"<answer>{random.choice(['odd', 'even', word(number)])}</answer>"

    watch(model)
    return Mortal(ScriptedEngine(play, tokenizer))


def ahead(config: EngineConfig, model: Any, tokenizer: Any) -> Mortal:
    return scripted(config, model, tokenizer)


def exact(config: EngineConfig, model: Any, tokenizer: Any) -> Mortal:
    watch(model)
    return Mortal(LocalEngine.build(config, model, tokenizer))


# --- where else it dies


def watch(model: Any) -> None:
    """Count forwards of the learner, files touched (in checkpoints, in the cache's cold starts, elsewhere in the run's
    folder) and records of TensorBoard; limit the length of files, if this is to end inside a line or a frame of a
    log."""
    import torch
    from tensorboard.summary.writer.record_writer import RecordWriter

    if RecordWriter.write is not _half_a_record:
        RecordWriter.write, RecordWriter.whole = _half_a_record, RecordWriter.write
    model.get_decoder().register_forward_hook(lambda *_: reach("update") if torch.is_grad_enabled() else None)
    sys.addaudithook(_touched)


def _touched(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename", "os.remove", "shutil.rmtree") or not arguments:
        return
    path = arguments[0]
    if not isinstance(path, str | os.PathLike):
        return
    place, out = os.fspath(path), os.environ.get("SOAK_OUT")
    if not isinstance(place, str):
        return
    if "/cold-starts/" in place:
        reach("keeping")
    elif "/checkpoints" in place:
        reach("checkpoint")
    elif "/events/step-" in place:
        if event == "open":
            _die_in_a_log(place)
    elif out and place.startswith(out):  # the lines, summary, accounts, results, pictures, report
        reach("files")


def _half_a_record(writer: Any, content: bytes) -> None:
    """TensorBoard's writer of one record, which may die in the middle of it."""
    if os.environ.get("SOAK_KILL") == f"tensorboard:{reached['tensorboard'] + 1}":
        writer._writer.write(content[: len(content) // 2])
        writer._writer.flush()
    reach("tensorboard")
    writer.whole(content)


def _die_in_a_log(place: str) -> None:
    """`log:STEP:BYTES`: from that step's first tree on, whatever file this process makes longer than BYTES kills it
    there, with the part that fitted written."""
    kind, *rest = os.environ.get("SOAK_KILL", "").split(":")
    if kind == "log" and f"step-{int(rest[0]):06d}" in place:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(rest[1]), resource.RLIM_INFINITY))


# --- its files


def word(number: int) -> str:
    return "odd" if number % 2 else "even"


def write_job(folder: Path) -> dict[str, Path]:
    """Model, tokenizer, tasks and traces in `folder`; returns a recipe by engine."""
    write_tiny_model(folder / "model", _tokenizer())
    for split, numbers in {"train": range(3, 31), "validation": range(31, 36), "test": range(36, 45)}.items():
        asked = [{"id": f"parity/{n}", "question": f"Parity of {n}", "answer": word(n)} for n in numbers]
        _write_lines(folder / f"{split}.jsonl", asked)
    _write_lines(folder / "traces.jsonl", [_trace(n) for n in range(50, 90)])
    recipes = {engine: folder / f"{engine}.yaml" for engine in ENGINES}
    for engine, path in recipes.items():
        exactly, most = str(engine == "exact").lower(), int(engine == "ahead")
        path.write_text(
            RECIPE.format(folder=folder, engine=engine, deterministic=exactly, most=most, cold_steps=COLD_STEPS)
        )
    return recipes


def _trace(number: int) -> dict[str, Any]:
    asked = {"id": f"trace/{number}", "question": f"Parity of {number}", "answers": [word(number)]}
    return {
        **asked,
        "steps": [{"calls": [{"name": "parity", "arguments": {"number": number}}]}, {"answer": word(number)}],
    }


def _write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
