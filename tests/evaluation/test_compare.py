import math

import pytest
from synthetic_run import write_run

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.comparison import read_comparison
from arpo.evaluation.comparison_tables import compare, tables


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = (("grpo", "none", 0.1), ("arpo", "paper", 0.25))
    return [write_run(folder / f"{n}-s{s}", rule=r, seed=s, gain=g, steps=8) for n, r, g in kinds for s in range(3)]


def test_runs_that_differ_in_their_seed_are_one_method(runs):
    assert {name: len(found) for name, found in read_comparison(runs).methods.items()} == {"grpo": 3, "arpo": 3}


def test_methods_are_told_apart_by_their_recipes_where_names_do_not_help(tmp_path):
    paths = [
        write_run(tmp_path / f"x{i}", rule=rule, seed=i, steps=2, evaluated=False)
        for i, rule in enumerate(("none", "paper", "paper"))
    ]
    assert [run.method for run in read_comparison(paths).runs] == ["none", "paper", "paper"]
    assert [run.method for run in read_comparison(paths, methods=["a", "b", "b"]).runs] == ["a", "b", "b"]


def test_equal_budgets_are_what_every_run_has_spent(runs):
    comparison = read_comparison(runs)
    spent, levels = comparison.at_equal("tokens/generated", "accuracy/probe_lines")
    assert spent == pytest.approx(min(run.total("tokens/generated") for run in comparison.runs))
    assert all(e.n == 3 and 0 < e.mean < 1 for e in levels.values())


def test_a_level_at_a_budget_knows_nothing_of_later_steps(runs):
    run = read_comparison(runs[:1]).runs[0]
    spent = run.spent("calls/answered")
    values = run.values("accuracy/probe_lines")
    assert run.at("calls/answered", spent[3], "accuracy/probe_lines") == pytest.approx(sum(values[2:4]) / 2)
    assert run.at("calls/answered", spent[0], "accuracy/probe_lines") == pytest.approx(values[0])
    assert math.isnan(run.at("calls/answered", spent[-1] * 2, "accuracy/probe_lines"))


def test_paired_differences_need_shared_questions(runs):
    found = read_comparison(runs).difference("arpo", "after")
    assert found is not None and found.difference.n == 80 and found.difference.mean > 0
    assert read_comparison(runs).difference("grpo", "after").p_value == 1.0


@pytest.mark.real_plots
def test_files_and_terminal_show_the_same_rows(runs, tmp_path):
    console = Console(record=True, width=220, file=open("/dev/null", "w"))  # noqa: SIM115
    comparison = compare(runs, tmp_path, console=console)
    shown, written = console.export_text(), (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").stat().st_size > 10_000 and "](comparison.png)" in written
    for table in tables(comparison):
        for row in table.rows:
            assert all(cell in shown and cell in written for cell in row)


def test_unfinished_and_single_runs_compare(tmp_path):
    going = write_run(tmp_path / "going", steps=1, finished=False, evaluated=False)
    empty = write_run(tmp_path / "empty", steps=0, finished=False, evaluated=False)
    compare([going], tmp_path / "one")
    compare([going, empty], tmp_path / "two")
    assert "going" in (tmp_path / "two" / "comparison.md").read_text()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        read_comparison([tmp_path])
    with pytest.raises(ConfigError, match="nothing to compare"):
        read_comparison([])
