"""The options of `arpo cache`. `arpo.cli.cached` does the work and is imported when a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from arpo.cli.boundary import command, path
from arpo.terminal_safe import print_line

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Results of tools that are cached or recorded.")
StoreFile = Annotated[
    Path | None,
    typer.Option("--file", parser=path, metavar="FILE", help="Another file than the user's (tools.cache.file)."),
]
OfTool = Annotated[str, typer.Option("--tool", metavar="NAME", help="Of this tool alone.")]


@app.command()
@command
def stats(file: StoreFile = None) -> None:
    """Say how much of which tool is kept."""
    from arpo.cli.cached import stats as counted
    from arpo.cli.cached import store_at

    print_line(counted(store_at(file)))


@app.command()
@command
def clear(
    file: StoreFile = None,
    tool: OfTool = "",
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Records and imports too, not only what is cached.")
    ] = False,
) -> None:
    """Remove what is cached."""
    from arpo.cli.cached import store_at

    store = store_at(file, tool)
    count = store.clear(tool, recorded=recorded)
    print_line(f"removed {count:,} results; {store.totals()[2]:,} recorded ones stay")


@app.command("export")
@command
def export_cache(
    out: Annotated[
        Path | None, typer.Argument(parser=path, metavar="OUT", help="A file of JSON lines (else printed).")
    ] = None,
    file: StoreFile = None,
    tool: OfTool = "",
) -> None:
    """Write every result as a line of JSON."""
    from arpo.cli.cached import export as lines
    from arpo.cli.cached import store_at

    for line in lines(store_at(file, tool), out, tool):
        print_line(line)


@app.command("import")
@command
def import_cache(
    source: Annotated[
        Path, typer.Argument(parser=path, metavar="FILE", help="Exported lines, or a JSON object QUERY: RESULT.")
    ],
    file: StoreFile = None,
    tool: Annotated[str, typer.Option("--tool", metavar="NAME", help="Whose results a JSON object holds.")] = "search",
    argument: Annotated[str, typer.Option(metavar="NAME", help="Which argument its queries are.")] = "query",
) -> None:
    """Record results for replay (tools.mode=replay)."""
    from arpo.cli.cached import load

    print_line(load(file, source, tool, argument))
