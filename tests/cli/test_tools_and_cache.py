"""`arpo tools` and `arpo cache`: what they print, what they leave, and how they answer a mistake."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arpo.cli.commands import app
from tiny_project import TinyProject

SHARED = Path(__file__).parents[3] / "shared" / "data" / "train" / "search_cache.json"


def arpo(*arguments: Any) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))


def test_tools_are_shown_as_the_model_sees_them_and_called() -> None:
    listed = arpo("tools", "quickstart", "data.train.source=/no/such/tasks.jsonl")  # listing reads no data
    assert listed.exit_code == 0 and "<search>query</search>" in listed.output and "->" not in listed.output
    shown = arpo("tools", "quickstart", "--call")
    assert shown.exit_code == 0
    for part in ("<search>query</search>", '"required": ["query"]', "python(", "-> ok", "42"):
        assert part in shown.output, part
    one = arpo("tools", "quickstart", "tools.0.options={documents: atlas, k: 1}", "search", "capital of Peru")
    assert one.exit_code == 0 and "The capital city of Peru is Lima." in one.output and "python" not in one.output
    failed = arpo("tools", "quickstart", "python", "1 / 0")
    assert failed.exit_code == 1 and "ZeroDivisionError" in failed.output and "error" in failed.output


@pytest.mark.parametrize("name", ["answer", "Think"])
def test_names_that_the_protocol_uses_are_refused_in_the_list(name: str) -> None:
    listed = arpo("tools", "quickstart", f"tools=[{{use: search, name: {name}, options: {{documents: atlas}}}}]")
    assert listed.exit_code == 2 and name in listed.output and "set its `name`" in listed.output


def test_only_the_tool_that_is_run_needs_its_key_and_the_list_says_whose_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    headers = "{Authorization: Bearer $NO_SUCH_TOKEN}"
    web = "{use: web, name: web, options: {provider: serper}}"
    mcp = f"{{use: mcp, options: {{url: 'http://127.0.0.1:9/mcp', headers: {headers}}}}}"
    words = ("tools", "quickstart", f"tools=[{{use: search, options: {{documents: atlas}}}}, {web}, {mcp}]")
    one = arpo(*words, "search", "capital of Peru")
    assert one.exit_code == 0 and "Lima" in one.output and "KEY" not in one.output
    keyless = arpo(*words, "web", "capital of Peru")
    assert keyless.exit_code == 2 and "Put it into the environment variable SERPER_API_KEY" in keyless.output
    assert "NO_SUCH_TOKEN" in arpo(*words, "add", "1").output, "the tool may be of the server that cannot be set up"
    listed = arpo(*words, "--call")
    assert listed.exit_code == 1 and "-> ok" in listed.output
    assert "not ready: tools.offered.1.options.key_env: serper needs a key" in listed.output
    assert "cannot be set up: tools.offered.2.options.headers" in listed.output


def test_with_a_chat_template_the_prompt_is_shown_as_the_model_reads_it(tiny_project: TinyProject) -> None:
    shown = arpo("tools", tiny_project.recipe, "chat.format=template")
    assert shown.exit_code == 0 and "by the model's chat template" in shown.output
    prompt = shown.output.partition("chat template:")[2].partition("\nparity\n")[0]
    assert '"name": "parity"' in prompt and "the capital of Peru?" in prompt
    absent = arpo("tools", tiny_project.recipe, "chat.format=template", "model.source=pypi:no-such-model==1.0")
    assert absent.exit_code == 0 and "The model itself is not here yet" in absent.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serch", "x"], "did you mean 'search'?"),
        (["search"], "needs its argument"),
        (["search", "{not json"], "is not JSON"),
        (["tools.mode=relpay"], "did you mean 'replay'?"),
        (["tools.mode=replay"], "no tool's results may be kept"),
        (["tools.mode=replay", "tools.0.cache=true"], "no recorded call to replay"),
        (["tools.limits.rate=-1"], "tools.limits.rate"),
        (["tools.0.limit={}"], "did you mean 'limits'?"),
    ],
)
def test_mistakes_are_answered(words: list[str], said: str) -> None:
    answer = arpo("tools", "quickstart", *words)
    assert answer.exit_code == 2 and said in answer.output, answer.output


def test_a_cached_call_is_said_to_be_one(tmp_path: Path) -> None:
    words = ("tools.0.cache=true", "search", "capital of Peru")
    assert "from the cache" not in arpo("tools", "quickstart", *words).output
    assert "from the cache" in arpo("tools", "quickstart", *words).output
    assert "search" in arpo("cache", "stats").output and (tmp_path / "cache" / "tools.sqlite").is_file()
    assert "removed 1 results" in arpo("cache", "clear").output


def test_a_file_of_queries_becomes_a_record_that_replays(tmp_path: Path) -> None:
    if not SHARED.is_file():
        pytest.skip("the recorded searches are not here")
    record = tmp_path / "record.sqlite"
    assert "recorded 1,000 results" in arpo("cache", "import", SHARED, "--file", record).output
    query, result = next(iter(json.loads(SHARED.read_text()).items()))
    replay = ("tools.0.cache=true", "tools.mode=replay", f"tools.cache.file={record}")
    said = arpo("tools", "quickstart", *replay, "search", query)
    assert said.exit_code == 0 and "from the record" in said.output and result[:60] in said.output
    missed = arpo("tools", "quickstart", *replay, "search", "what nobody asked")
    assert missed.exit_code == 1 and "replay miss" in missed.output


def test_what_is_exported_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(json.dumps({"café": "one", "b": ""}))
    assert arpo("cache", "import", tmp_path / "asked.json", "--tool", "look", "--argument", "word").exit_code == 0
    out = tmp_path / "out.jsonl"
    assert "wrote 2 results" in arpo("cache", "export", out).output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["tool"], line["arguments"]["word"], line["empty"]) for line in lines] == [
        ("look", "b", True),
        ("look", "café", False),
    ]
    again = tmp_path / "again.sqlite"
    arpo("cache", "import", out, "--file", again)
    assert arpo("cache", "export", "--file", again).output == out.read_text()
    assert "removed 0 results; 2 recorded ones stay" in arpo("cache", "clear", "--file", again).output
    assert "removed 2 results" in arpo("cache", "clear", "--recorded", "--file", again).output


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    assert "nothing has been cached" in arpo("cache", "stats").output
    for content, said in (
        ('{"a": 1}', "should be a text"),
        ("[1]", "a line is an object"),
        ("x", "not JSON"),
        ("", ""),
    ):
        (tmp_path / "file").write_text(content)
        answer = arpo("cache", "import", tmp_path / "file", "--file", tmp_path / "new.sqlite")
        assert said in answer.output and (answer.exit_code == 2 or not content), answer.output
        assert not content or not (tmp_path / "new.sqlite").exists()
    replay = ("tools.0.cache=true", "tools.mode=replay", f"tools.cache.file={tmp_path / 'none.sqlite'}")
    assert (
        arpo("tools", "quickstart", *replay, "search", "x").exit_code == 2 and not (tmp_path / "none.sqlite").exists()
    )
    (tmp_path / "file").write_text('{"a": "b"}')
    arpo("cache", "import", tmp_path / "file")
    for command in ("clear", "export"):
        wrong = arpo("cache", command, "--tool", "serch")
        assert wrong.exit_code == 2 and "did you mean 'search'" in wrong.output
    database = tmp_path / "other.sqlite"
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA user_version = 77")
    assert "in format 77" in arpo("cache", "stats", "--file", database).output
