"""The browser's half of benchmarks/viewer.py: how soon a run's charts are on the screen, and a tree when its data has arrived."""

import shutil
import statistics

from playwright.sync_api import sync_playwright

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
WINDOW = {"width": 1280, "height": 900}
READ = """() => {
  const drawn = performance.getEntriesByName("tree-drawn").at(-1);
  if (!drawn) return null;
  const asked = performance.getEntriesByType("resource").filter((entry) => entry.name.includes("/tree?")).at(-1);
  return { ms: drawn.startTime - asked.responseEnd, segments: document.querySelectorAll(".treebox [role=treeitem]").length };
}"""


CHARTS = """() => performance.getEntriesByName("charts-drawn").at(-1)?.startTime ?? null"""


def charts_ms(address: str, *, rounds: int = 5) -> float:
    """The median over fresh pages of the milliseconds from the address to the frame after the one that shows the run page's first
    charts: page, script, four answers, and drawing are all in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        measured = []
        for _ in range(rounds):
            page = browser.new_page(viewport=WINDOW)
            page.goto(address)
            measured.append(float(_when_there(page, CHARTS)))
            page.close()
        browser.close()
    return statistics.median(measured)


def drawn_ms(address: str, *, run: str, step: int, task: str, rounds: int = 5) -> float:
    """The median over fresh pages of the milliseconds from the last byte of the tree's answer to the frame after the one that
    shows it: reading the JSON, laying it out, drawing it, and the browser's own layout and paint are all in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        place = f"{address}#/{run}/tree?step={step}&task={task}"
        measured = [_once(browser.new_page(viewport=WINDOW), place) for _ in range(rounds)]
        browser.close()
    return statistics.median(measured)


def _once(page, address: str) -> float:
    page.goto(address)
    page.wait_for_selector(".treebox svg")
    found = _when_there(page, READ)
    assert found["segments"] > 50, found
    page.close()
    return float(found["ms"])


def _when_there(page, read: str):
    """What `read` gives as soon as it is not null; wait_for_function needs eval, which the page's policy forbids."""
    while (found := page.evaluate(read)) is None:
        page.wait_for_timeout(20)
    return found
