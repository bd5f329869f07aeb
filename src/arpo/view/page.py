"""The page that is built from viewer/ (one HTML file, one script, one style sheet), and the export of a run as one file
with page and data.

The export opens without a server and without a network: its policy forbids loading anything, and allows only its two
blocks of code, by their hashes. Data lie in a block that no browser executes, with every `<` escaped.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.files import write_atomic
from arpo.view.library import Library, NotHereError, Viewed, as_text

MOST_BYTES = 24 << 20  # of trees and answers in an export, as JSON: what a browser opens quickly
_ALL = 1 << 40
_SCRIPT = re.compile(r"<script\b[^>]*\bsrc=[^>]*></script>")
_STYLE = re.compile(r"<link\b[^>]*\brel=\"stylesheet\"[^>]*>")
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ViewerPage:
    html: str
    script: str
    style: str
    script_at: str  # the paths under which the HTML requests them: "app.js"
    style_at: str


def built_page() -> ViewerPage:
    """The built assets. Raises ConfigError if they are missing, as in a checkout that has never built them."""
    folder = Path(str(files("arpo.view") / "static"))
    found = {kind: sorted(folder.rglob(f"*.{kind}")) for kind in ("html", "js", "css")}
    if any(len(paths) != 1 for paths in found.values()):
        counted = ", ".join(f"{len(paths)} .{kind}" for kind, paths in found.items())
        raise ConfigError(
            f"the page is not built ({counted} files)", where=str(folder), hint="run `make viewer` (needs Node)"
        )
    html, script, style = (found[kind][0] for kind in ("html", "js", "css"))
    return ViewerPage(
        html=html.read_text(encoding="utf-8"),
        script=script.read_text(encoding="utf-8"),
        style=style.read_text(encoding="utf-8"),
        script_at=script.relative_to(folder).as_posix(),
        style_at=style.relative_to(folder).as_posix(),
    )


def export(library: Library, path: Path, tree: tuple[int, str] | None = None, *, most_bytes: int = MOST_BYTES) -> str:
    """Write the runs as one page to `path`. Returns a text about what was left out, or "".

    With `tree`, a step and a task of the first run, the page holds only that tree with its tokens. Otherwise it holds
    all tables, charts and entropies, and up to `most_bytes` of trees and answers, the latest steps first. Raises
    ConfigError if the tree does not exist.
    """
    page = built_page()
    library.catch_up()
    embedded = _tree_alone(library, *tree) if tree is not None else _everything(library, most_bytes)
    write_atomic(path, self_contained(page, embedded))
    return str(embedded["note"])


def self_contained(page: ViewerPage, embedded: Answer) -> str:
    """One HTML file with script, style and data inside."""
    script = page.script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    style = page.style.replace("</style", "<\\/style")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    data = as_text(embedded).replace("<", "\\u003c")
    html = _STYLE.sub("", _SCRIPT.sub("", page.html))
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer">'
    body = f'<script type="application/json" id="arpo-data">{data}</script><script type="module">{script}</script>'
    html = _after(html, r"<meta\s+charset=[^>]*>", f"{head}<style>{style}</style>")
    return html.replace("</body>", f"{body}</body>") if "</body>" in html else html + body


def _after(html: str, pattern: str, text: str) -> str:
    """Insert `text` after the first match. The policy must precede everything that it governs."""
    found = re.search(pattern, html, re.IGNORECASE)
    if found is None:
        raise ConfigError("the built page has no <meta charset>: build it anew", hint="make viewer")
    return html[: found.end()] + text + html[found.end() :]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _everything(library: Library, most_bytes: int) -> Answer:
    embedded = _empty(library, list(library.runs))
    for name in library.runs:
        base = f"/api/runs/{name}"
        embedded["run"][name] = library.answer(base)
        embedded["metrics"][name] = library.answer(f"{base}/metrics")
        embedded["trees"][name] = library.answer(f"{base}/trees", {"limit": str(_ALL)}, most_rows=_ALL)
        embedded["entropy"][name] = library.answer(f"{base}/entropy")
    budget = _Budget(most_bytes)
    for name, viewed in library.runs.items():
        _embed_evaluations(library, embedded, name, viewed, budget)
    taken = total = 0
    for name in library.runs:
        rows = embedded["trees"][name]["rows"]
        total += len(rows)
        for row in sorted(rows, key=lambda row: -row["step"]):  # stable: within a step the log's order
            taken += _embed_tree(library, embedded, name, row["step"], row["task"], budget)
    if taken < total:
        embedded["note"] = (
            f"{taken} of {total} trees are in this file, those of the last steps first; the tables and charts are whole"
        )
    return embedded


class _Budget:
    """The bytes that are left. The first item that does not fit ends the export of further ones."""

    def __init__(self, most: int) -> None:
        self.left = most

    def takes(self, *answers: Any) -> bool:
        size = sum(len(json.dumps(answer, separators=(",", ":"))) for answer in answers)
        fits, self.left = size <= self.left, self.left - size
        return fits


def _embed_tree(library: Library, embedded: Answer, run: str, step: int, task: str, budget: _Budget) -> bool:
    if budget.left <= 0:
        return False
    asked = {"step": str(step), "task": task}
    tree = library.answer(f"/api/runs/{run}/tree", asked)
    names = [node["id"] for node in tree["nodes"]]
    tokens = [library.answer(f"/api/runs/{run}/tokens", {**asked, "node": name}) for name in names]
    if not budget.takes(tree, tokens):
        return False
    embedded["tree"][_key(run, step, task)] = tree
    embedded["tokens"] |= {_key(run, step, task, name): answer for name, answer in zip(names, tokens, strict=True)}
    return True


def _embed_evaluations(library: Library, embedded: Answer, run: str, viewed: Viewed, budget: _Budget) -> None:
    for name in viewed.evaluations.names():
        base = f"/api/runs/{run}"
        table = library.answer(f"{base}/evaluation", {"name": name, "limit": str(_ALL)}, most_rows=_ALL)
        embedded["evaluation"][_key(run, name)] = table
        for row in table["rows"]:
            asked = {"name": name, "id": row["id"], "sample": str(row["sample"])}
            answer = library.answer(f"{base}/sample", asked)
            if budget.takes(answer):
                embedded["sample"][_key(run, name, row["id"], row["sample"])] = answer


def _tree_alone(library: Library, step: int, task: str) -> Answer:
    run = next(iter(library.runs))
    embedded = _empty(library, [run])
    base = f"/api/runs/{run}"
    _embed_tree(library, embedded, run, step, task, _Budget(_ALL))
    embedded["run"][run] = {**library.answer(base), "evaluations": []}
    embedded["metrics"][run] = {"generation": "", "live": False, "steps": [], "series": {}}
    found = library.answer(f"{base}/trees", {"step": str(step), "limit": str(_ALL)}, most_rows=_ALL)
    rows = [row for row in found["rows"] if row["task"] == task]
    facets = {**found["facets"], "steps": [step]}
    embedded["trees"][run] = {
        **found,
        "rows": rows,
        "total": 1,
        "reward_mean": rows[0]["reward_mean"],
        "facets": facets,
    }
    nothing: Answer = {name: [] for name in ("tools", "windows", "curves", "calibration", "rises", "payoffs")}
    embedded["entropy"][run] = {"indexed": found["indexed"], **nothing}
    embedded["runs"]["runs"][0]["evaluations"] = []
    return {**embedded, "note": "one tree of the run", "start": {"run": run, "step": step, "task": task}}


def _empty(library: Library, names: Sequence[str]) -> Answer:
    runs = library.answer("/api/runs")
    if not names:
        raise NotHereError("there is no run to export")
    shown = [{**run, "live": False} for run in runs["runs"] if run["id"] in names]
    kinds = ("run", "metrics", "trees", "tree", "tokens", "entropy", "evaluation", "sample")
    exported = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - `datetime.UTC` reads worse beside it
    return {
        "exported": exported,
        "note": "",
        "runs": {**runs, "runs": shown},
        **{kind: {} for kind in kinds},
        "start": None,
    }


def _key(*parts: Any) -> str:
    """As JavaScript's JSON.stringify writes an array of texts and numbers."""
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
