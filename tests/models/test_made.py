"""Models that a function makes: named by content, made once, and refused where they are no model."""

import sys

import pytest

from arpo.errors import ConfigError
from arpo.models import made
from arpo.models.sources import checked, fetch, local_model
from tiny_project import TinyProject

SOURCE = '''
from pathlib import Path
from shutil import copytree

MODEL = Path(__file__).parent / "model"
made = []


def copy(folder):
    """The tiny model."""
    made.append(folder)
    copytree(MODEL, folder, dirs_exist_ok=True)


def same(folder):
    copy(folder)


def nothing(folder):
    (folder / "notes.txt").write_text("no model")
'''


@pytest.fixture
def maker(own_project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    (own_project.folder / "maker.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(own_project.folder))
    monkeypatch.delitem(sys.modules, "maker", raising=False)
    made.made_model.cache_clear()
    return own_project


def test_a_function_makes_a_model_once_a_process_and_its_content_names_the_folder(maker: TinyProject) -> None:
    assert local_model("maker:copy") is None
    folder = fetch("maker:copy")
    assert folder == fetch("maker:copy") and folder.is_relative_to(maker.cache)
    assert len(sys.modules["maker"].made) == 1
    assert (folder / "config.json").read_bytes() == (maker.model / "config.json").read_bytes()
    made.made_model.cache_clear()  # as in another process: the same content, the same folder
    assert fetch("maker:copy") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-made is left"
    assert fetch("maker:same").name.partition("--")[2] == folder.name.partition("--")[2]
    made.made_model.cache_clear()
    config = maker.model / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert fetch("maker:copy") != folder


@pytest.mark.parametrize("source", ["maker:nothing", "maker:absent", "nowhere:at_all"])
def test_a_function_that_makes_no_model_is_named(maker: TinyProject, source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made.made_model(source, checked)
    assert "model.source" in str(caught.value)
    models = maker.cache / "models"
    assert not models.exists() or not list(models.iterdir())
