"""The command line: quick to answer, one clear message for a mistake, and exit codes a script can use."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arpo import __version__ as version
from arpo.cli import main

HEAVY = ("torch", "transformers", "numpy", "scipy", "pyarrow", "matplotlib", "datasets", "bm25s", "sympy", "flint")
ROOT = Path(__file__).parents[2]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "NO_COLOR": "1"}


def arpo(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arpo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False, **options)  # type: ignore[call-overload,no-any-return]


def loaded_by(code: str) -> set[str]:
    """Heavy packages that are imported after `code` ran."""
    listing = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=600
    )
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["export", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"sys.argv = ['arpo', *{arguments!r}]\nfrom arpo.cli import main\ntry:\n    main()\nexcept SystemExit:\n"
        "    pass"
    )
    assert loaded_by(code) == set()


def test_importing_the_package_or_reading_a_recipe_imports_nothing_heavy() -> None:
    assert loaded_by("import arpo; arpo.Run") == set()
    assert loaded_by("from arpo.recipe.load import load_recipe; load_recipe('quickstart')") == set()


def test_the_version_is_that_of_the_package() -> None:
    assert arpo("--version").stdout == f"arpo {version}\n"


def test_help_costs_little_more_than_the_libraries_that_print_it() -> None:
    def seconds(*command: str) -> float:
        """Of the processor, which a busy machine leaves nearly as they are."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = "import pydantic, rich.console, rich.markdown, rich.table, typer, yaml"
    assert any(seconds("-m", "arpo", "--help") < 3 * seconds("-c", libraries) for _ in range(3))


def test_help_names_every_command() -> None:
    shown = arpo("--help").stdout
    for name in ("train", "sft", "eval", "compare", "chat", "export", "doctor", "bench", "init"):
        assert re.search(rf"^\s+{name}\s", shown, re.MULTILINE), name


def test_a_mistake_is_one_message_and_exit_code_2() -> None:
    done = arpo("train", "quickstart", "rollout.rots=3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: rollout.rots: ") and "'roots'" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "quickstart"),
        (["train", "--resume", "no-such-run"], "no run to resume"),
        (["train", "nowhere.yaml"], "no such recipe"),
        (["train", "quickstart", "--print", "rollout.leaves"], "key=value"),
        (["bench", "nothing"], "benchmark"),
    ],
)
def test_other_mistakes(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = arpo(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_ctrl_c_is_a_word_and_exit_code_130(tmp_path: Path) -> None:
    script = (
        "import time, typer\nfrom arpo.cli.boundary import command\napp = typer.Typer()\n"
        "@app.command()\n@command\ndef wait() -> None:\n    print('waiting', flush=True)\n    time.sleep(30)\napp()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and said.strip() == "stopped"


def test_ctrl_c_while_modules_are_imported_is_the_same_word(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "arpo.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "arpo.cli.commands", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130 and capsys.readouterr().err.strip() == "stopped"


def test_print_shows_the_resolved_recipe_and_reads_back(tmp_path: Path) -> None:
    first = arpo("train", "quickstart", "rollout.leaves=6", "--print")
    assert first.returncode == 0 and "leaves: 6" in first.stdout
    (tmp_path / "again.yaml").write_text(first.stdout, encoding="utf-8")
    assert arpo("train", str(tmp_path / "again.yaml"), "--print").stdout == first.stdout
