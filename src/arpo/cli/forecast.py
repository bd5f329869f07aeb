"""Estimates the time of the quickstart on this machine with a model of the same shape and random weights, without
downloads."""

import asyncio
from dataclasses import dataclass
from typing import Any

from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.training.plan import Counts, Lengths, Speed, plan

_SHAPE: dict[str, Any] = {  # SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_LENGTHS = Lengths(prompt=60, written=40, observed=77)  # of the quickstart's traces
_COUNTS = Counts(tasks=1000, held_out=500, traces=0)  # its cold start is bundled
_FETCH_S = 60.0  # for the model's download


@dataclass(frozen=True, slots=True)
class Expected:
    minutes: float
    text: str


def forecast_quickstart() -> Expected:
    """Measure this machine (seconds to half a minute) and estimate the quickstart."""
    run = load_recipe("quickstart")
    return forecast(run, asyncio.run(_measure(run)))


def forecast(run: RunConfig, speed: Speed) -> Expected:
    """The quickstart `run` on a machine of this speed."""
    planned = plan(run, speed, _LENGTHS, _COUNTS, spent_s=_FETCH_S)
    return Expected((planned.seconds + _FETCH_S) / 60, planned.text)


def quickstart_model(run: RunConfig, *, layers: int = 30) -> Any:
    """A model of the quickstart's shape with random weights, with LoRA if `run` uses it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from arpo.models.loading import compute_dtype, device_of, with_lora

    device = device_of(run.model)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**_SHAPE, "num_hidden_layers": layers}))
    if run.model.lora:
        model = with_lora(model.to(compute_dtype(run.model, device)), run.model.lora)
    return model.to(device).train()


async def _measure(run: RunConfig) -> Speed:
    from arpo.assembly.components import build_engine
    from arpo.learner.local import LocalLearner
    from arpo.models.loading import compute_dtype
    from arpo.training.planning import measure_speed

    model = quickstart_model(run)
    learner = LocalLearner(
        model,
        loss=run.loss,
        optim=run.optim,
        num_updates=1,
        token_budget=run.train.token_budget,
        tree=True,
        dtype=compute_dtype(run.model, model.device),
    )
    engine = build_engine(run.engine, model, None)
    try:
        return await measure_speed(learner, engine, _SHAPE["vocab_size"])
    finally:
        await engine.close()
