"""Runs `arpo eval` from its options: on a recipe's held-out tasks, or on benchmarks."""

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
    """Raise ConfigError for options that need another one."""
    from arpo.evaluation.presets import preset as settings_of
    from arpo.recipe.load import load_recipe

    settings = settings_of(preset).overrides if preset is not None else ()
    run = load_recipe(recipe, [*settings, *overrides])
    if benchmark is None:
        alone = {"--data": data, "--ids": ids, "--shard": shard, "--resume": resume, "--again": again, "--entropy": entropy}
        if given := [name for name, value in alone.items() if value]:
            raise ConfigError(f"{given[0]} goes with --benchmark", hint="e.g. --benchmark gsm8k,bamboogle")
        from arpo.evaluation.run_eval import asked_differently, evaluate_named

        run = asked_differently(run, limit=limit, samples=samples)
        evaluate_named(recipe, run, model=model, greedy_only=greedy, out=out)
        return
    if again and not resume:
        raise ConfigError("--again goes with --resume")
    from arpo.evaluation.benchmarks import Wanted, run_benchmarks
    from arpo.evaluation.questions import read_shard

    wanted = Wanted(
        names=benchmark.split(","),
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
    run_benchmarks(recipe, run, wanted)


def study_these(paths: Sequence[Path], *, entropy: bool, judge: str | None, out: Path | None) -> None:
    """Raise ConfigError for an unusable judge."""

    from arpo.evaluation.analysis import analyse
    from arpo.options import custom
    from arpo.recipe.evaluation import JudgeConfig
    from arpo.yaml_positions import parse_value

    config = None
    if judge is not None:
        try:
            config = custom(JudgeConfig, parse_value(judge, "--judge"), "--judge")
        except ConfigError as error:
            hint = "e.g. --judge '{url: http://localhost:8000/v1, model: NAME, key_env: VARIABLE}'"
            raise ConfigError(error.message, where=error.where, value=error.value, hint=hint) from error
    analyse(paths, entropies=entropy, judge=config, out=out)
