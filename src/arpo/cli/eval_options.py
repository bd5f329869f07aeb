"""The options of `arpo eval`, as typer reads them."""

from pathlib import Path
from typing import Annotated

import typer

from arpo.cli.boundary import path

Benchmark = Annotated[
    str | None,
    typer.Option(metavar="NAME[,NAME]", help="Benchmarks (gsm8k, gaia, ..., all), or sources of tasks, instead."),
]
DataFolder = Annotated[
    Path | None, typer.Option(parser=path, metavar="DIR", help="Where their files lie (else the Hub).")
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Published settings: arpo-reasoning, arpo-deepsearch.")
]
Model = Annotated[str | None, typer.Option(help="Another model: a folder, a Hub id, pypi:NAME==VERSION, or a run.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most questions (else evaluation.limit; benchmarks: all).")]
Ids = Annotated[str | None, typer.Option(metavar="ID[,ID]", help="Only these questions; * stands for anything.")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="One part of N; `arpo results` puts them together.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Sampled answers a question (else evaluation.samples).")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Greedy answers alone.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder; nothing is asked twice.")]
Again = Annotated[bool, typer.Option("--again", help="With --resume: ask again what infrastructure failures ended.")]
Entropy = Annotated[bool, typer.Option("--entropy", help="Also measure entropies around tool results.")]
EvalOut = Annotated[
    Path | None,
    typer.Option(parser=path, metavar="DIR", help="Where to write (else the run's folder, or below here)."),
]
