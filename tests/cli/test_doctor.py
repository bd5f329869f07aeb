"""`arpo doctor` looks at a machine and says what it finds; it never raises."""

import re
from functools import partial
from pathlib import Path

import pytest

from arpo.assembly import machine_memory
from arpo.cli import doctor, forecast
from arpo.cli.doctor import NEEDED_MEMORY_GB, TESTED, Diagnosis, Level, examine, show
from arpo.recipe.load import load_recipe
from arpo.training.plan import Speed

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
        environment.setattr(forecast, "load_recipe", partial(load_recipe, overrides=["optim.last_layers=1"]))
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


@pytest.mark.parametrize(
    ("meminfo_gb", "limit", "used", "expected"),
    [(16, None, 0, 16), (16, "max", 2, 16), (16, 8, 2, 7), (4, 8, 2, 4), (3, None, 0, 3)],
)
def test_free_memory_is_the_machine_s_or_the_container_s(
    tmp_path: Path, meminfo_gb: int, limit: int | str | None, used: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 2 GB that the container uses, one is a cache of files."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {meminfo_gb * 2**20} kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit * 2**30 if isinstance(limit, int) else limit}\n")
        (group / "memory.current").write_text(f"{used * 2**30}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {2**30}\n")
    free = machine_memory.free_memory(tmp_path)
    assert free == expected * 2**30
    monkeypatch.setattr(machine_memory, "free_memory", lambda: free)
    assert (doctor._memory().level is Level.PROBLEM) == (expected < NEEDED_MEMORY_GB), "then it is not ready"


def test_the_forecast_is_near_the_run_that_the_readme_shows() -> None:
    """From the speeds that the run measured, by what `arpo doctor` knows of the quickstart without its model."""
    _, _, shown = (ROOT / "README.md").read_text().partition("<!-- quickstart output -->")
    speeds = re.search(r"this machine: ([\d,]+) tokens/s trained, ([\d,]+) sampled", shown)
    took = re.search(r"([\d]+):(\d\d) in all", shown)
    assert speeds and took
    trained, sampled = (float(number.replace(",", "")) for number in speeds.groups())
    speed = Speed(trained_tokens_per_s=trained, sampled_tokens_per_s=sampled)
    expected = forecast.forecast(load_recipe("quickstart"), speed).minutes
    assert 1 / 1.5 < expected / (int(took[1]) + int(took[2]) / 60) < 1.5


def test_tested_versions_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in TESTED} == TESTED
