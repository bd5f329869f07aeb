"""Results of evaluations from the samples on disk: computed again, merged, written in other forms. `arpo results`."""

from collections.abc import Sequence
from pathlib import Path

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.analysis import analyse, keep
from arpo.evaluation.lm_eval_export import export_lm_eval
from arpo.evaluation.manifest import read_manifest
from arpo.evaluation.merge_shards import merge, studies_of_parts
from arpo.evaluation.reports import print_results, write_all
from arpo.evaluation.results import EvalResults, read_results, read_studies
from arpo.evaluation.samples import read_samples


def show_results(
    folders: Sequence[Path], *, out: Path | None = None, lm_eval: Path | None = None, console: Console | None = None
) -> EvalResults:
    """Compute the figures of a folder again, or of several put together in `out`, and print them; `lm_eval` gets them
    in that form.

    Raises ConfigError where a folder holds no answers, or several do not belong together."""
    console = console or Console(soft_wrap=True)
    if out is None and len(folders) > 1:
        raise ConfigError("several folders are put together in a new one", where="--out", hint="Name it")
    manifest = read_manifest(folders[0]) if out is None else merge(folders, out)
    folder = out or folders[0]
    results = write_all(folder, manifest)
    if results is None:
        raise ConfigError("holds no answers yet", where=str(folder))
    if out is not None:
        keep(out, studies_of_parts(folders, out))
        analyse([out], entropies=any("entropy" in read_studies(part) for part in folders), console=console, shown=False)
        results = read_results(folder)
    print_results(console, results)
    written = [f"{folder}/report.md, report.html, results.json"]
    if lm_eval is not None:
        written.append(str(export_lm_eval(results, read_samples(folder).values(), lm_eval)))
    console.print(f"written: {', '.join(written)}")
    return results
