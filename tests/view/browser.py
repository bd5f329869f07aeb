"""A real browser over a real server: what the tests of the page share."""

import functools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from filelock import FileLock
from playwright.sync_api import Browser, Page, sync_playwright

from arpo.view.library import Library
from arpo.view.server import application

VIEWER = Path(__file__).parents[2] / "viewer"
TOKEN = "the-token"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
NO_BROWSER = (
    "the browser's tests need Chromium and find none. Debian, Ubuntu: apt-get install chromium; elsewhere name it: "
    "ARPO_CHROMIUM=/path/to/chromium"
)


def chromium() -> str:
    """Where the browser is. Fails the test where there is none: what cannot be tried must not pass."""
    named = os.environ.get("ARPO_CHROMIUM")
    found = next(filter(None, [named, *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]), None)
    if found is None:
        pytest.fail(NO_BROWSER)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield launched
        launched.close()


@contextmanager
def served(library: Library) -> Iterator[str]:
    """The address of the page, token and all."""
    server = uvicorn.Server(
        uvicorn.Config(application(library, TOKEN), port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    with library:
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        server.should_exit = True
        thread.join()


@contextmanager
def watched(browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A page of an empty profile. Nothing may be reported to its console, raised, popped up, or asked of another
    host."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda r: (
            wrong.append(r.url) if not r.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")) else None
        ),
    )
    yield page
    context.close()
    assert not wrong, "\n".join(wrong)


def serious(page: Page) -> list[str]:
    """What axe finds wrong with the page as it stands, if it is serious or worse."""
    page.evaluate(axe())
    found = page.evaluate("axe.run().then(result => result.violations)")
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]


@functools.cache
def axe() -> str:
    """axe-core, of the version in viewer/package-lock.json. Skips the test where there is no npm to fetch it."""
    script = VIEWER / "node_modules" / "axe-core" / "axe.min.js"
    with FileLock(Path(tempfile.gettempdir()) / f"arpo-axe-{os.getuid()}.lock"):  # tests run in several processes
        if not script.is_file():
            if shutil.which("npm") is None:
                pytest.skip("axe-core needs Node 20 or newer with npm")
            command = ["npm", "ci", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=VIEWER, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return script.read_text(encoding="utf-8")
