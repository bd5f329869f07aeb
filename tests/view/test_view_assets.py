"""The built page is that of the sources beside it: by hash (without Node), and byte by byte (with Node, slow)."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

VIEWER = Path(__file__).parents[2] / "viewer"
STATIC = Path(__file__).parents[2] / "src" / "arpo" / "view" / "static"
SKIPPED = {"node_modules", "README.md"}


def sources_hash(root: Path) -> str:
    """As viewer/sources.js computes it."""
    found = hashlib.sha256()
    for name in sorted(files(root)):
        found.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return found.hexdigest()


def files(root: Path, folder: str = "") -> list[str]:
    names = []
    for path in (root / folder).iterdir():
        if path.name not in SKIPPED and not path.name.startswith("."):
            names += files(root, f"{folder}{path.name}/") if path.is_dir() else [folder + path.name]
    return names


def test_the_built_page_is_that_of_its_sources():
    built = re.search(r'<meta name="sources" content="([0-9a-f]{64})"', (STATIC / "index.html").read_text())
    assert built, "the built page does not say what it was built from: run `make viewer`"
    assert built[1] == sources_hash(VIEWER), "viewer/ has changed since the page was built: run `make viewer`"


def test_the_built_page_is_small_and_asks_nobody():
    """One HTML, one script, one style; no address of another machine that would be loaded."""
    assert sorted(path.name for path in STATIC.iterdir()) == ["app.css", "app.js", "index.html"]
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 300_000
    style, html = ((STATIC / name).read_text() for name in ("app.css", "index.html"))
    assert not re.search(r"(src|href|url|@import)\W{0,3}(https?:)?//", style + html)


@pytest.mark.parametrize(
    "never", ["innerHTML", "outerHTML", "insertAdjacentHTML", "dangerouslySetInnerHTML", "document.write", "eval("]
)
def test_no_source_makes_markup_of_text(never):
    assert [path.name for path in (VIEWER / "src").rglob("*.ts*") if never in path.read_text()] == []


def test_a_build_that_is_not_whole_leaves_the_last_one(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("needs Node 20 or newer")
    built, static = tmp_path / "built", tmp_path / "static"
    whole = ("index.html", "app.js", "app.css")
    for folder, names in ((built, whole[:2]), (static, (*whole, "of-another-version.js"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{name} in {folder.name}")

    def swapped() -> bool:
        command = ["node", str(VIEWER / "swap.js"), str(built), str(static)]
        return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0

    assert not swapped() and len(list(static.iterdir())) == 4
    (built / "app.css").write_text("app.css in built")
    assert swapped() and not built.exists()
    assert {path.name: path.read_text() for path in static.iterdir()} == {name: f"{name} in built" for name in whole}


@pytest.mark.slow
def test_a_rebuild_gives_the_same_bytes(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("needs Node 20 or newer with npm; the hash of the sources is checked without")
    viewer = tmp_path / "viewer"
    shutil.copytree(VIEWER, viewer, ignore=shutil.ignore_patterns("node_modules"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=viewer, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / "src" / "arpo" / "view" / "static"
    assert {p.name: p.read_bytes() for p in built.iterdir()} == {p.name: p.read_bytes() for p in STATIC.iterdir()}
