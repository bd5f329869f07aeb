"""The page in a real browser: what somebody who looks at a run does, on a run that was really recorded."""

import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlencode

import pytest
from browser import serious, served, watched
from playwright.sync_api import expect
from recorded import NASTY

from arpo.evaluation.manifest import read_manifest, write_manifest
from arpo.evaluation.samples import SampleLog, SampleRecord
from arpo.runs.folder import RunFolder
from arpo.runs.lock import Lock
from arpo.view.library import Library
from arpo.view.page import export
from evaluation_folder import write_evaluation

pytestmark = pytest.mark.slow


@pytest.fixture
def two_runs(tiny_run, tmp_path):
    """The tiny run and one that differs from it in a key."""
    other = shutil.copytree(tiny_run, tmp_path / "other", ignore=shutil.ignore_patterns("lock", "checkpoints"))
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: tiny", "name: other", 1).replace("seed: 3", "seed: 4", 1))
    return Library([tiny_run, other], cache=tmp_path / "indexes")


@pytest.fixture
def address(library):
    with served(library) as found:
        yield found


@contextmanager
def held(folder):
    """As while somebody writes there."""
    lock = Lock.take(folder / "lock")
    yield
    lock.release()


def test_the_run_page_draws_charts_and_follows_the_slider(address, browser):
    with watched(browser) as page:
        page.goto(address)
        expect(page.locator(".chart canvas")).not_to_have_count(0)
        expect(page.get_by_role("heading", name="Step 2", exact=True)).to_be_visible()
        page.get_by_role("slider").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("heading", name="Step 1", exact=True)).to_be_visible()
        expect(page).to_have_url(re.compile("step=1"))
        expect(page.get_by_role("heading", name="Events")).to_be_visible()
        expect(page.get_by_text("checkpoint", exact=False).first).to_be_visible()


def test_hovering_shows_the_values_of_that_step_in_every_chart(address, browser, tiny_run):
    rewards = [m["reward/probe_lines"] for m in RunFolder(tiny_run).metrics()]
    with watched(browser) as page:
        page.goto(address)
        chart = page.locator(".chart", has_text="Reward").first
        box = chart.locator(".u-over").bounding_box()
        for x, reward in ((box["x"] + 3, rewards[0]), (box["x"] + box["width"] - 3, rewards[-1])):
            page.mouse.move(x, box["y"] + 50)
            value = chart.locator(".legend li", has_text="probe lines").locator("b")
            assert float(value.inner_text()) == pytest.approx(reward, abs=1e-3)


def test_dragging_zooms_all_charts_and_a_button_goes_back(tiny_run, tmp_path, browser):
    with RunFolder.create(tmp_path / "long", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        for step in range(1, 41):
            run.append_metrics(step, {"reward/leaves": step / 40, "seconds/step": 1.0, "seconds/update": 0.5})
    with served(Library([tmp_path / "long"], cache=tmp_path / "i")) as address, watched(browser) as page:
        page.goto(address)
        box = page.locator(".u-over").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50, steps=4)
        page.mouse.up()
        first, last = page.get_by_label("Steps", exact=True), page.get_by_label("to", exact=True)
        assert 9 <= int(first.input_value()) <= 13 and 18 <= int(last.input_value()) <= 22
        page.get_by_role("button", name="All steps").click()
        expect(first).to_have_value("1")
        page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 50)
        expect(page).to_have_url(re.compile("step=(20|21)"))


def test_two_runs_lie_over_each_other_and_their_recipes_differ(two_runs, browser):
    with served(two_runs) as address, watched(browser) as page:
        page.goto(address)
        page.get_by_role("checkbox", name="other").check()
        legend = page.locator(".chart", has_text="Reward").first.locator(".legend li")
        expect(legend).to_have_count(2)
        page.get_by_label("Which line of Reward").select_option("all leaves")
        page.reload()  # the address holds it
        expect(legend).to_have_count(2)
        page.locator("summary", has_text="Recipe").click()
        page.get_by_label("Differences to").select_option("other")
        expect(page.get_by_role("row", name=re.compile("^seed 3 4"))).to_be_visible()


def test_tables_filter_sort_and_lead_to_a_tree(address, browser, library):
    everything = library.answer("/api/runs/tiny/trees")
    with watched(browser) as page:
        page.goto(f"{address}#/tiny/trees")
        expect(page.locator(".paging")).to_contain_text(f"{everything['total']} trees")
        page.get_by_role("combobox", name="Step").select_option("2")
        rows = page.locator(".rows tbody tr")
        expect(rows).to_have_count(sum(row["step"] == 2 for row in everything["rows"]))
        page.get_by_role("button", name="reward").click()
        expect(page.get_by_role("columnheader", name="reward ↓")).to_be_visible()
        rewards = rows.locator("td:nth-child(4) b")
        expect(rewards).to_have_text(
            sorted(rewards.all_inner_texts(), key=float, reverse=True)
        )  # as soon as the answer is there
        page.get_by_label("Find").fill("no such question")
        expect(page.locator(".paging")).to_contain_text("0 trees")
        page.get_by_role("button", name="All trees").click()
        expect(rows).to_have_count(everything["total"])
        page.locator(".rows tbody a").first.click()
        expect(page).to_have_url(re.compile(r"#/tiny/tree\?step=\d+&task="))


def test_steps_are_chosen_by_range_and_branching_by_what_it_did(address, browser, library):
    with watched(browser) as page:
        page.goto(f"{address}#/tiny/trees")
        rows = page.locator(".rows tbody tr")
        page.get_by_label("Steps", exact=True).fill("2")
        second = library.answer("/api/runs/tiny/trees", {"min_step": "2"})
        expect(rows).to_have_count(second["total"])
        expect(page).to_have_url(re.compile("min_step=2"))
        page.get_by_role("combobox", name="Step", exact=True).select_option("1")  # one step, instead of the range
        expect(page).not_to_have_url(re.compile("min_step"))
        page.get_by_role("button", name="All trees").click()
        tally = library.answer("/api/runs/tiny/trees")["branching"]
        value, said = max((("1", "helped"), ("-1", "hurt"), ("0", "same")), key=lambda one: tally[one[1]])
        assert tally[said]
        page.get_by_role("button", name=re.compile(f"{said} {tally[said]}")).click()
        expect(rows).to_have_count(tally[said])
        chosen = library.answer("/api/runs/tiny/trees", {"helped": value})["rows"]
        page.locator(".rows tbody a").first.click()
        trees = page.get_by_role("navigation", name="Trees", exact=True)
        if len(chosen) > 1:
            expect(trees).to_contain_text(f"1 of {len(chosen)}")
            trees.get_by_role("link", name="next →").click()
            expect(page).to_have_url(re.compile(f"task={re.escape(chosen[1]['task'].replace('/', '%2F'))}"))
        trees.get_by_role("link", name="The chosen trees").click()
        expect(rows).to_have_count(tally[said])


def test_metrics_that_the_page_does_not_know_are_drawn_by_their_names(tiny_run, tmp_path, browser):
    with RunFolder.create(tmp_path / "new", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        for step in range(1, 4):
            spread = {f"staleness/lag_{end}": float(n * step) for n, end in enumerate(("p50", "p99", "max"))}
            known = {"train/ratio_p50": 1.0, "train/ratio_p99": 1.0 + step, "train/ratio_p05": 0.9}
            on_policy = {"train/loss": 0.0, "groups/all": 4.0}
            run.append_metrics(step, {"reward/leaves": 0.1 * step, **spread, **known, **on_policy, "odd/<b>": 1.0})
        held_out = SampleRecord(benchmark="validation", id="1", accuracy=0.75, correct=True, reward=1.0)
        write_evaluation(run.path / "evaluation" / "validation-000003", [held_out], model="mine")
    with served(Library([tmp_path / "new"], cache=tmp_path / "i")) as address, watched(browser) as page:
        page.goto(address)
        lag = page.locator(".chart", has_text="staleness, lag")
        expect(lag.locator(".legend li")).to_have_text(["max 6", "p50 0", "p99 3"])
        expect(page.locator(".chart", has_text="odd, <b>")).to_have_count(1)
        expect(page.locator(".chart", has_text="Held-out accuracy").locator(".legend li")).to_have_text(
            "validation 75 %"
        )
        expect(page.locator(".chart", has_text="Importance ratio").locator(".legend li")).to_have_text(
            ["median 1", "5 % 0.9", "99 % 4"]
        )
        expect(page.locator(".chart", has_text="groups, all")).to_have_count(0)
        page.locator("summary", has_text="Details").click()
        expect(page.locator(".chart", has_text="groups, all").locator("canvas")).to_have_count(1)


def test_an_evaluation_that_goes_on_is_followed(tmp_path, browser):
    folder = tmp_path / "going"
    given = {
        "benchmark": "sums",
        "accuracy": 1.0,
        "correct": True,
        "reward": 1.0,
        "ending": "finished",
        "question": "What?",
    }
    failed = {**given, "accuracy": 0.0, "correct": False, "ending": "engine_failed", "failure": "<b>overloaded</b>"}
    write_evaluation(folder, [SampleRecord(**given, id="1")], model="mine", finished=False)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, benchmarks=(replace(manifest.benchmarks[0], ids=("1", "2", "3")),)))
    with SampleLog(folder) as log, held(folder):  # noqa: SIM117
        with served(Library([folder], cache=tmp_path / "i")) as address, watched(browser) as page:
            page.goto(address)
            rows = page.locator(".rows tbody tr")
            expect(rows).to_have_count(1)
            expect(page.locator(".totals")).to_contain_text("1 answer of 3")
            log.append(SampleRecord(**failed, id="2"), None)
            expect(rows).to_have_count(2)
            expect(page.locator(".failures")).to_contain_text("1 × <b>overloaded</b>")
            page.get_by_role("combobox", name="Failed").select_option("1")
            expect(rows).to_have_count(1)
            rows.get_by_role("link").click()
            expect(page.get_by_role("region", name="The chosen answer")).to_contain_text("<b>overloaded</b>")


def test_an_answer_of_an_evaluation_can_be_read(address, browser, library):
    name = library.answer("/api/runs")["runs"][0]["evaluations"][-1]
    row = library.answer("/api/runs/tiny/evaluation", {"name": name})["rows"][0]
    with watched(browser) as page:
        page.goto(f"{address}#/tiny/evaluation?name={name}")
        page.get_by_role("link", name=row["question"]).first.click()
        card = page.get_by_role("region", name="The chosen answer")
        expect(card).to_contain_text(row["gold"][0])
        expect(card.get_by_role("heading", name=row["id"])).to_be_focused()
        card.get_by_role("button", name="Close").click()
        expect(card).to_have_count(0)
        page.get_by_role("combobox", name="Answer").select_option("wrong")
        wrong = library.answer("/api/runs/tiny/evaluation", {"name": name, "correct": "0"})["total"]
        expect(page.locator(".paging")).to_contain_text(f"{wrong} answer")


def test_a_live_run_is_followed(tiny_run, tmp_path, browser):
    records = [replace(record, schema=2) for record in RunFolder(tiny_run).trees(1)]
    with RunFolder.create(tmp_path / "live", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        run.append_tree(1, records[0])
        run.append_metrics(1, {"reward/leaves": 0.25})
        with served(Library([run.path], cache=tmp_path / "i")) as address, watched(browser) as page:
            page.goto(address)
            expect(page.get_by_role("heading", name="Step 1", exact=True)).to_be_visible()
            expect(page.locator(".state.live")).to_contain_text("still going")
            run.append_metrics(2, {"reward/leaves": 0.5})
            expect(page.get_by_role("heading", name="Step 2", exact=True)).to_be_visible()
            page.goto(f"{address}#/live/trees")
            rows = page.locator(".rows tbody tr")
            expect(rows).to_have_count(1)
            run.append_tree(2, records[1])
            expect(rows).to_have_count(2)


def test_an_export_opens_with_the_network_off(two_runs, tmp_path, browser):
    two_runs.catch_up()
    written = tmp_path / "page.html"
    export(two_runs, written)
    two_runs.close()
    with watched(browser) as page:
        page.context.set_offline(True)
        page.goto(written.as_uri())
        expect(page.locator(".chart canvas")).not_to_have_count(0)
        expect(page.locator("footer")).to_contain_text("exported")
        page.get_by_role("checkbox", name="other").check()
        page.get_by_role("link", name="Trees", exact=True).click()
        page.get_by_role("combobox", name="Step").select_option("2")
        expect(page.locator(".paging")).to_contain_text("3 trees")
        page.locator(".rows tbody a").first.click()
        expect(page.locator("main")).not_to_contain_text("does not hold")
        page.get_by_role("link", name="Entropy").click()
        expect(page.get_by_role("heading", name="Around tool results")).to_be_visible()
        page.get_by_role("link", name="Evaluation").click()
        page.locator(".rows tbody a").first.click()
        expect(page.get_by_role("region", name="The chosen answer")).to_be_visible()


def test_an_exported_page_filters_and_sorts_as_the_server_does(library, tmp_path, browser):
    facets = library.answer("/api/runs/tiny/trees")["facets"]
    asked = [
        {"step": "2", "sort": "-tokens"},
        {"min_step": "2", "max_step": "7", "sort": "task"},
        {"max_step": "1"},
        {"family": facets["families"][0], "sort": "reward_mean"},
        {"helped": "0"},
        {"branches": "1", "sort": "-branches"},
        {"tool": facets["tools"][0], "min_reward": "0", "max_reward": "0.9", "sort": "helped"},
        {"q": "PARITY OF 1", "sort": "-task"},
        {"ending": facets["endings"][0], "sort": "-helped"},
    ]
    export(library, tmp_path / "page.html")
    with watched(browser) as page:
        page.goto((tmp_path / "page.html").as_uri())
        for query in asked:
            expected = [row["task"] for row in library.answer("/api/runs/tiny/trees", query)["rows"]]
            page.evaluate("to => { location.hash = to; }", f"#/tiny/trees?{urlencode(query)}")
            expect(page.locator(".rows td .mono")).to_have_text(expected)


def test_a_folder_of_evaluations_alone_opens_on_them(tiny_run, tmp_path, browser):
    shutil.copytree(tiny_run / "evaluation", tmp_path / "answers" / "evaluation")
    with served(Library([tmp_path / "answers"], cache=tmp_path / "i")) as address, watched(browser) as page:
        page.goto(address)
        expect(page.locator(".totals")).to_be_visible()
        expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Evaluation"])


@pytest.mark.parametrize("exported", [False, True])
def test_what_somebody_wrote_stays_text(nasty_run, tmp_path, browser, exported):
    library = Library([nasty_run], cache=tmp_path / "i")
    written = tmp_path / "page.html"
    if exported:
        export(library, written)
    with served(library) as address, watched(browser) as page:
        start = written.as_uri() if exported else address
        for place in ("", "/trees", *(f"/tree?step=1&task=nasty%2F{n}" for n in range(len(NASTY)))):
            page.goto("about:blank")
            page.goto(f"{start}#/nasty{place}")
            page.locator(":is(main h2, main table, main svg, main [role=alert]):visible").first.wait_for()
            assert (
                page.locator("main script, main iframe, main a[href^='javascript:'], main img, main textarea").count()
                == 0
            )
            assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]", page.locator("main").inner_text())


PLACES = ("", "/trees", "/entropy", "/evaluation")


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (390, True)]
)  # colours are the theme's, overflow is the width's
def test_axe_has_no_serious_finding_and_nothing_overflows(address, browser, width, dark):
    with watched(browser, width=width, height=844, dark=dark) as page:
        for place in PLACES:
            page.goto("about:blank")
            page.goto(f"{address}#/tiny{place}")
            page.locator("main .card").first.wait_for()
            time.sleep(0.3)  # charts draw in the next frame
            page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            tables = (
                "[...document.querySelectorAll('.wide:has(.cards)')]."
                "filter((each) => each.scrollWidth > each.clientWidth)"
            )
            assert width > 390 or page.evaluate(f"{tables}.map((each) => each.ariaLabel)") == []
            assert serious(page) == []


def test_the_keyboard_reaches_page_and_theme(address, browser):
    with watched(browser) as page:
        page.goto(address)
        page.locator(".top").wait_for()
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the page")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.get_by_role("button", name="Switch to dark colours").press("Enter")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_mistakes_are_said(address, browser, library):
    with watched(browser) as page:
        page.goto(f"{address}#/nobody")
        expect(page.get_by_role("alert")).to_contain_text("no run “nobody”")
