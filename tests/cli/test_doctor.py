"""`arpo doctor` looks at a machine and says what it finds; it never raises."""

import re
from functools import partial
from pathlib import Path

import pytest

from arpo.cli import forecast
from arpo.cli.doctor import TESTED, Diagnosis, Level, examine, show

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor") / "cache"


@pytest.fixture(scope="module")
def findings(cache: Path) -> list[Diagnosis]:
    """Of this machine, with an empty cache: what takes long is imported and tried once. The quickstart is timed on 2
    layers."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ARPO_CACHE", str(cache))
        environment.setattr(forecast, "quickstart_model", partial(forecast.quickstart_model, layers=2))
        return list(examine())


def test_it_looks_at_everything_and_finds_this_machine_fit(
    findings: list[Diagnosis], capsys: pytest.CaptureFixture[str]
) -> None:
    looked_at = {finding.what for finding in findings}
    assert {
        "python",
        "torch build",
        "bfloat16",
        "threads",
        "memory",
        "disk, cache",
        "python tool",
        "model cache",
        "extras",
        "quickstart",
    } <= looked_at
    assert all(finding.advice for finding in findings if finding.level is Level.PROBLEM)
    isolated = next(finding for finding in findings if finding.what == "python tool")
    assert isolated.level is Level.FINE and "isolated" in isolated.text
    assert re.search(r"takes about \d+ minutes here.*\d+ steps, \d+ questions", findings[-1].text)
    assert show(iter(findings)) == all(finding.level is not Level.PROBLEM for finding in findings)
    assert "bfloat16" in capsys.readouterr().out


def test_a_problem_is_shown_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert not show(iter([Diagnosis("torch", "cannot be imported", Level.PROBLEM, "pip install torch")]))
    shown = capsys.readouterr().out
    assert "pip install torch" in shown and "1 problem" in shown


def test_a_cache_that_is_elsewhere_is_named(findings: list[Diagnosis], cache: Path) -> None:
    shown = {finding.what: finding.text for finding in findings}
    assert str(cache) in shown["disk, cache"] and "empty" in shown["model cache"]


def test_tested_versions_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in TESTED} == TESTED
