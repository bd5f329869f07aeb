"""A command may be given in a folder of somebody else's, beside files that are named like modules."""

import os
from pathlib import Path

import pytest

from arpo.models.sources import _progress_option
from arpo.worker_process import SAFE_PATH, WorkerPool

NAMES = ("multiprocessing", "pip", "runpy", "pickle", "json", "signal", "numpy")


def environment_of(name: str) -> str | None:
    return os.environ.get(name)


def test_no_process_imports_what_lies_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SAFE_PATH, raising=False)
    pool = WorkerPool("arpo.answer_text:exact")
    assert pool.call({"answer": "a", "gold": "a"}, 60.0) == 1.0
    pool.close()
    assert _progress_option() and not (tmp_path / "ran").exists()


def test_programs_that_a_worker_starts_find_their_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (None, "1"):
        monkeypatch.delenv(SAFE_PATH, raising=False)
        if given is not None:
            monkeypatch.setenv(SAFE_PATH, given)
        pool = WorkerPool(f"{__name__}:environment_of")
        assert pool.call({"name": SAFE_PATH}, 60.0) == given
        pool.close()
        assert os.environ.get(SAFE_PATH) == given
