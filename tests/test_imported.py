"""What a run names by import path is found again, or it is said why not and what to do."""

from pathlib import Path
from typing import Any

import pytest

import arpo
from arpo.import_path import import_from_path


def of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_module_that_is_nowhere_is_told_where_it_is_looked_for() -> None:
    with pytest.raises(
        arpo.ConfigError, match=r"cannot import no_such_shop .*beside the recipe, or in the folder .* `code`"
    ) as error:
        import_from_path("no_such_shop:price", "tools.0.use")
    assert "tools.0.use" in str(error.value)


def test_a_module_whose_own_import_is_missing_is_told_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_file(tmp_path, monkeypatch, "needs_more", "import no_such_package\n")
    with pytest.raises(arpo.ConfigError, match="No module named 'no_such_package'") as error:
        import_from_path("needs_more:price", "tools.0.use")
    assert "beside the recipe" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("__main__:price_of_a_cell", "notebook.*reward.use=FILE:price_of_a_cell"),
        ("made_inside:main.<locals>.score", "inside a function.*reward.use=FILE:score"),
        ("made_inside:<lambda>", "inside a function.*reward.use=FILE:NAME"),
    ],
)
def test_what_only_its_own_process_could_find_says_so(
    path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_file(
        tmp_path,
        monkeypatch,
        "made_inside",
        "def main():\n    def score(task, transcript): return 0.0\n    return score\n",
    )
    with pytest.raises(arpo.ConfigError, match=why):
        import_from_path(path, "reward.use")


def test_a_script_that_trains_when_it_is_imported_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Any
) -> None:
    """`arpo eval RUN` imports the file for its reward: with `again=True` in it, the run would be moved aside and done
    again."""
    before = sorted(tiny_run.parent.iterdir())
    of_a_file(
        tmp_path,
        monkeypatch,
        "trains_at_once",
        f"import arpo\ndef score(task, transcript): return 0.0\narpo.train(arpo.load_recipe({str(tiny_run)!r}), "
        "again=True)\n",
    )
    with pytest.raises(arpo.ConfigError, match=r"trains_at_once calls arpo.train as soon as it is imported.*__main__"):
        import_from_path("trains_at_once:score", "reward.use")
    assert sorted(tiny_run.parent.iterdir()) == before
