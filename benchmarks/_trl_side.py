"""One side of `against_trl.py`: TRL's GRPOTrainer on the same model, tasks, tools and lengths, with its phases timed.

What TRL is given: all generations of a step in one batch, no divergence (so no reference model), no vLLM, no
checkpoints, no gradient checkpointing, the same precision of matrix products, fused AdamW.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arpo.answer_text import exact
from arpo.final_answer import final_answer
from arpo.recipe.run import RunConfig
from arpo.tasks import Task
from arpo.tools import CallContext, Tool


def make_trainer(
    run: RunConfig,
    model: Any,
    *,
    tokenizer: Any,
    tasks: Sequence[Task],
    tool: Tool,
    steps: int,
    tasks_per_step: int,
    completion: int,
    bf16: bool,
    out: Path,
    after_step: Callable[[dict[str, float], dict[str, Any]], None],
) -> Any:
    """A trainer of `steps` steps over `tasks` in their order. `after_step` gets each step's figures, and the batch that
    was trained on as TRL's loss takes it, as soon as the step has ended."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging as hf_logging
    from trl import GRPOTrainer

    hf_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    prompts = [
        {"prompt": [{"role": "system", "content": run.chat.system}, *map(dict, task.messages)], "task": task.id}
        for task in tasks
    ]
    trainer = GRPOTrainer(
        model=model,
        args=_config(run, steps, tasks_per_step, completion, out, use_cpu=model.device.type == "cpu", bf16=bf16),
        reward_funcs=_reward(tokenizer, tasks),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        tools=[_function(tool, tokenizer, tasks[0], run)],
    )
    trainer.remove_callback(PrinterCallback)
    clock = _Clock(trainer)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            after_step(clock.stop(), clock.batch[-1])

    trainer.add_callback(Steps())
    return trainer


def _config(
    run: RunConfig, steps: int, tasks_per_step: int, completion: int, out: Path, *, use_cpu: bool, bf16: bool
) -> Any:
    """The recipe's settings in TRL's words."""
    from trl import GRPOConfig

    rows, leaves = 8, run.rollout.leaves
    return GRPOConfig(
        output_dir=str(out),
        use_cpu=use_cpu,
        bf16=bf16,
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=tasks_per_step * leaves // rows,
        generation_batch_size=tasks_per_step * leaves,
        num_generations=leaves,
        max_completion_length=completion,
        max_tool_calling_iterations=run.rollout.max_calls,
        temperature=run.rollout.temperature,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        epsilon=run.loss.clip_low,
        learning_rate=run.optim.lr,
        lr_scheduler_type="constant",
        weight_decay=run.optim.weight_decay,
        max_grad_norm=run.optim.grad_clip or 0.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_vllm=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=run.seed,
    )


def same_prompts(trainer: Any, ours: Sequence[Sequence[int]]) -> bool:
    """Whether TRL's prompts of its first rows are, token for token, `ours`."""
    theirs, *_ = trainer._tokenize_prompts([row["prompt"] for row in trainer.train_dataset.select(range(len(ours)))])
    return list(map(list, theirs)) == list(map(list, ours))


class _Clock:
    """Seconds of a step by phase: sampling (with tools), rewards and padding, the update; and what was sampled."""

    def __init__(self, trainer: Any) -> None:
        self.seconds = dict.fromkeys(("sampling", "rest"), 0.0)
        self.counts = dict.fromkeys(
            ("trajectories", "tokens_sampled", "tool_calls", "tokens_trained", "tokens_computed"), 0.0
        )
        self.batch: list[Any] = []  # what the last step was trained on, as TRL holds it
        generate, score = trainer._generate, trainer._generate_and_score_completions

        def timed_generate(prompts: list[Any]) -> Any:
            began = time.perf_counter()
            found = generate(prompts)
            self.seconds["sampling"] += time.perf_counter() - began
            prompt_ids, completion_ids, tool_mask = found[:3]
            self.counts["trajectories"] += len(completion_ids)
            self.counts["tokens_sampled"] += sum(map(sum, tool_mask))
            self.counts["tokens_trained"] += sum(map(len, [*prompt_ids, *completion_ids]))
            longest = max(map(len, prompt_ids)) + max(map(len, completion_ids))
            self.counts["tokens_computed"] += longest * len(completion_ids)
            self.counts["tool_calls"] += sum(len(m.get("tool_calls") or ()) for said in found[3] for m in said)
            return found

        def timed_score(inputs: list[Any]) -> Any:
            began, sampled = time.perf_counter(), self.seconds["sampling"]
            found = score(inputs)
            self.seconds["rest"] += time.perf_counter() - began - (self.seconds["sampling"] - sampled)
            self.batch.append(found)
            return found

        trainer._generate, trainer._generate_and_score_completions = timed_generate, timed_score

    def start(self) -> None:
        for figures in (self.seconds, self.counts):
            figures.update(dict.fromkeys(figures, 0.0))
        self.batch.clear()
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        step, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        update = step - sum(self.seconds.values())
        return {"step": step, "cpu": cpu, **self.seconds, "update": update, **self.counts}


def _function(tool: Tool, tokenizer: Any, task: Task, run: RunConfig) -> Callable[..., Any]:
    """The tool as TRL wants it: a documented function. Results are cut to as many tokens as our side shows."""
    most = run.chat.result_tokens

    async def search(query: str):  # type: ignore[no-untyped-def]  # a return type would stand in the prompt
        result = await tool({"query": query}, CallContext(task=task, deadline_s=10.0, seed=0))
        return str(tokenizer.decode(tokenizer.encode(result.text, add_special_tokens=False)[:most]))

    about = tool.schema["properties"]["query"]["description"]
    search.__doc__ = f"{tool.description}\n\nArgs:\n    query: {about}\n"
    return search


def _reward(tokenizer: Any, tasks: Sequence[Task]) -> Callable[..., list[float | None]]:
    """The paper's rule on the last message's answer, as our side scores it: wrong format -1, wrong answer 0, else 1."""
    answers, end = {task.id: task.answers for task in tasks}, tokenizer.eos_token_id

    def reward(
        completions: list[Any], completion_ids: list[list[int]], task: list[str], **_: Any
    ) -> list[float | None]:
        scores: list[float | None] = []
        for said, tokens, name in zip(completions, completion_ids, task, strict=True):
            ended = tokens[-1] == end and said[-1].get("role") == "assistant" and not said[-1].get("tool_calls")
            answer = final_answer(said[-1].get("content") or "") if ended else None
            scores.append(-1.0 if answer is None else max(exact(answer, gold) for gold in answers[name]))
        return scores

    return reward
