"""What the options of `arpo eval` and `arpo study` ask for."""

from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError


def measure(
    recipe: str,
    overrides: Sequence[str],
    *,
    benchmark: str | None,
    data: Path | None,
    preset: str | None,
    model: str | None,
    limit: int | None,
    ids: str | None,
    shard: str | None,
    samples: int | None,
    greedy: bool,
    resume: bool,
    again: bool,
    entropy: bool = False,
    out: Path | None,
) -> None:
    """Raises ConfigError for options that need another one."""
    from arpo.evaluation.evaluate import EvalRequest, evaluate_model
    from arpo.evaluation.questions import preset as settings_of
    from arpo.evaluation.questions import read_shard
    from arpo.recipe.load import load_recipe

    settings = settings_of(preset).overrides if preset is not None else ()
    run = load_recipe(recipe, [*settings, *overrides])
    if benchmark is None and data is not None:
        raise ConfigError("--data goes with --benchmark", hint="e.g. --benchmark gsm8k,bamboogle")
    if again and not resume:
        raise ConfigError("--again goes with --resume")
    request = EvalRequest(
        benchmarks=() if benchmark is None else benchmark.split(","),
        data=data,
        limit=limit,
        ids=tuple(each.strip() for each in (ids or "").split(",") if each.strip()),
        shard=None if shard is None else read_shard(shard),
        samples=samples,
        greedy=greedy,
        preset=preset or "",
        model=model,
        out=out,
        resume=resume,
        again=again,
        entropy=entropy,
    )
    evaluate_model(recipe, run, request)


def study_these(paths: Sequence[Path], *, entropy: bool, judge: str | None, out: Path | None) -> None:
    """Raise ConfigError for an unusable judge."""

    from arpo.endpoint.config import EndpointConfig
    from arpo.evaluation.analysis import analyse
    from arpo.options import custom
    from arpo.yaml_positions import parse_value

    config = None
    if judge is not None:
        try:
            config = custom(EndpointConfig, parse_value(judge, "--judge"), "--judge")
        except ConfigError as error:
            hint = "e.g. --judge '{url: http://localhost:8000/v1, model: NAME, key_env: VARIABLE}'"
            raise ConfigError(error.message, where=error.where, value=error.value, hint=hint) from error
    analyse(paths, entropies=entropy, judge=config, out=out)
