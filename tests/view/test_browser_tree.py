"""The tree page in a real browser: a recorded tree is walked, read, compared, searched and taken along; hostile text
stays text."""

import asyncio
import re
import shutil
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import pytest
from browser import serious, served, watched
from large_tree import large_tree
from playwright.sync_api import expect
from recorded import NASTY

from arpo.core.place import show
from arpo.core.score import Score
from arpo.core.tree import StopReason
from arpo.engines.scripted import Script
from arpo.evaluation.samples import SampleLog, read_samples
from arpo.rollout.collect import record_of
from arpo.runs.folder import RunFolder
from arpo.view.library import Library
from arpo.view.page import export
from small_world import ANSWER, Search, agent, config, rollouts

pytestmark = pytest.mark.slow


@pytest.fixture
def tree(library):
    """Of the recorded trees that were trained on (their leaves differ) the one with the most siblings, as the server
    answers it."""
    rows = library.answer("/api/runs/tiny/trees")["rows"]
    row = max(rows, key=lambda row: (row["reward_max"] > row["reward_min"], row["branches"], row["calls"]))
    return library.answer("/api/runs/tiny/tree", {"step": str(row["step"]), "task": row["task"]})


@pytest.fixture
def address(library):
    with served(library) as found:
        yield found


def at(address: str, tree: dict, **query: str) -> str:
    asked = {"step": tree["step"], "task": tree["task"]["id"], **query}
    return f"{address}#/tiny/tree?" + "&".join(f"{key}={quote(str(value))}" for key, value in asked.items())


def bars(page):
    return page.locator(".treebox [role=treeitem]")


def children(tree: dict, node: str) -> list[dict]:
    return [other for other in tree["nodes"] if other["parent"] == node]


def test_every_segment_has_a_bar_as_long_as_its_tokens(address, browser, tree):
    with watched(browser) as page:
        page.goto(at(address, tree))
        expect(bars(page)).to_have_count(len(tree["nodes"]))
        widths = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.treebox [role=treeitem]')].map(g => "
            "[g.id.slice(5), Number(g.querySelector('rect').getAttribute('width'))]))"
        )
        long = [node for node in tree["nodes"] if node["kind"] != "prompt" and widths[node["id"]] > 3.01]
        scales = {round(widths[node["id"]] / node["tokens"], 3) for node in long}
        assert long and len(scales) == 1
        for leaf in tree["leaves"]:
            label = bars(page).and_(page.locator(f"[id='tree-{leaf['node']}']"))
            expect(label).to_have_attribute("aria-label", re.compile(f"ends here: . {leaf['reward']:g}"))


def test_the_arrows_walk_the_tree_and_the_address_follows(address, browser, tree):
    roots = children(tree, "-")
    with watched(browser) as page:
        page.goto(at(address, tree))
        page.locator(".treebox").focus()
        page.keyboard.press("ArrowRight")
        expect(page).to_have_url(re.compile(f"node={roots[0]['id']}$"))
        page.keyboard.press("ArrowLeft")
        expect(page).to_have_url(re.compile("node=-$"))
        page.keyboard.press("End")
        end = page.locator(".treebox [aria-selected=true]").get_attribute("id").removeprefix("tree-")
        assert not children(tree, end)
        seen = set()
        for _ in tree["leaves"]:
            seen.add(page.locator(".treebox [aria-selected=true]").get_attribute("id"))
            expect(page.locator(".treebox")).to_have_attribute(
                "aria-activedescendant", page.locator(".treebox [aria-selected=true]").get_attribute("id")
            )
            page.keyboard.press("ArrowDown")
        assert len(seen) == len(tree["leaves"])  # every row was met
        page.keyboard.press("Enter")
        expect(page.locator("#reading")).to_be_focused()


def test_a_tree_as_a_whole_lists_its_decisions_and_each_leads_to_its_fork(address, browser, tree):
    made = [node for node in tree["nodes"] if node["kind"] == "observation" and node["decision"]]
    with watched(browser) as page:
        page.goto(at(address, tree))
        about = page.get_by_role("region", name="The chosen segment")
        expect(about).to_contain_text(f"{sum(node['decision']['granted'] for node in made)} given at")
        rows = about.locator(".decisions tbody tr")
        expect(rows).to_have_count(len(made))
        for row, node in zip(rows.all(), made, strict=True):
            expect(row).to_have_attribute("title", node["decision"]["said"])
        rows.last.get_by_role("button").click()
        expect(page).to_have_url(re.compile(f"node={re.escape(made[-1]['id'])}$"))
        expect(rows.last).to_have_class("chosen")


@pytest.mark.parametrize(
    ("query", "said"), [({"node": "t9.9"}, "the segment “t9.9”"), ({"vs": "7.7"}, "the branch “7.7”")]
)
def test_what_an_address_names_in_vain_is_said(address, browser, tree, query, said):
    with watched(browser) as page:
        page.goto(at(address, tree, **query))
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(said)
        expect(bars(page)).to_have_count(len(tree["nodes"]))
        alert.get_by_role("button").click()
        expect(alert).to_have_count(0)


def test_a_fork_says_why_it_branched_and_what_that_paid(address, browser, tree):
    fork = next(
        node
        for node in tree["nodes"]
        if node["kind"] == "observation" and node["decision"] and node["decision"]["granted"]
    )
    with watched(browser) as page:
        page.goto(at(address, tree, node=fork["id"]))
        about = page.get_by_role("region", name="The chosen segment")
        expect(about).to_contain_text(fork["decision"]["said"])
        expect(about).to_contain_text("Paid off")
        page.locator(f"[id='tree-{fork['id']}'] rect").first.hover()
        expect(page.locator(".hover")).to_contain_text(fork["decision"]["said"])
        turn = children(tree, fork["id"])[1]
        page.locator(f"[id='tree-{turn['id']}'] rect").first.click()
        expect(page).to_have_url(re.compile(f"node={re.escape(turn['id'])}"))
        expect(about).to_contain_text(f"sibling turn {turn['place']}")
        expect(about).to_contain_text("Given because")
        expect(about).to_contain_text(re.compile("[▲▼=] "))


def test_the_slash_searches_and_enter_goes_on(address, browser, tree):
    tool = next(outcome for node in tree["nodes"] for outcome in node.get("outcomes", ()))
    holds = [n["id"] for n in tree["nodes"] if tool["text"].lower() in str(n).lower()]
    with watched(browser) as page:
        page.goto(at(address, tree))
        page.locator(".treebox").focus()
        page.keyboard.press("/")
        search = page.get_by_label("Search in this tree")
        expect(search).to_be_focused()
        page.keyboard.type(tool["text"])
        expect(page.locator(".search output")).to_contain_text("found")
        visited = set()
        for _ in range(int(page.locator(".search output").inner_text().split()[0])):
            page.keyboard.press("Enter")
            visited.add(page.locator(".treebox [aria-selected=true]").get_attribute("id").removeprefix("tree-"))
        assert visited and visited <= set(holds)
        page.keyboard.press("Escape")
        expect(page.locator(".treebox")).to_be_focused()
        expect(search).to_have_value("")


def test_a_branch_is_read_with_its_tokens_tinted(address, browser, tree, library):
    turn = max((n for n in tree["nodes"] if n["kind"] == "turn"), key=lambda n: n["tokens"])
    asked = {"step": str(tree["step"]), "task": tree["task"]["id"], "node": turn["id"]}
    tokens = library.answer("/api/runs/tiny/tokens", asked)
    with watched(browser) as page:
        page.goto(at(address, tree, node=turn["id"]))
        segment = page.locator(f"[data-segment='{turn['id']}']")
        spans = segment.locator(".tokens > span")
        expect(spans).to_have_count(sum(piece != "" for piece in tokens["pieces"]))
        assert segment.locator(".tokens").inner_text().strip() == "".join(tokens["pieces"]).strip()
        strongest = max(range(len(tokens["ids"])), key=lambda i: tokens["entropies"][i])
        spans.nth(strongest).hover()
        expect(segment.locator(".hover")).to_contain_text(f"id {tokens['ids'][strongest]}")
        for tint in ("logprob", "advantage", "ratio"):
            page.get_by_label("Tint tokens by").select_option(tint)
            expect(page).to_have_url(re.compile(f"tint={tint}"))
        expect(segment).not_to_contain_text("is recorded for this turn")  # the tiny run keeps what its learner computed
        segment.get_by_role("button", name="tokens").click()
        rows = segment.get_by_role("region", name="Raw tokens").locator("tbody tr")
        expect(rows).to_have_count(len(tokens["ids"]))
        page.get_by_label("Tint tokens by").select_option("plain")
        expect(spans).to_have_count(0)


def test_a_result_shows_tool_latency_and_status(address, browser, tree):
    seen = next(node for node in tree["nodes"] if node["kind"] == "observation")
    with watched(browser) as page:
        page.goto(at(address, tree, node=seen["id"]))
        block = page.locator(f"[data-segment='{seen['id']}'] .outcome").first
        expect(block).to_contain_text(seen["outcomes"][0]["tool"])
        expect(block.locator(".facts")).to_contain_text(re.compile(r"ok · (under )?\d+ ms"))
        expect(block.locator(".came")).to_contain_text(seen["outcomes"][0]["text"])


def test_a_context_that_was_rewritten_shows_what_was_dropped(browser, tokenizer, tiny_run, tmp_path):
    def play(prompt, params):
        done = "No calls left" in tokenizer.decode(list(prompt))
        return Script(said=f"<think>Done.</think>{ANSWER}" if done else "<think>I look.</think><search>Peru</search>")

    tool = Search(reply=lambda query: "Lima is a city in Peru. " * 8)
    rules = {"rule": {"rule": "fixed", "at": 4, "siblings": 1}, "context": {"use": "drop_results", "at": 600}}
    sizes = config(leaves=2, roots=1, branch_tokens=900, max_calls=12, **rules)
    with ThreadPoolExecutor(1) as apart:  # the browser's loop runs in this thread
        (one,) = apart.submit(asyncio.run, rollouts(agent(tokenizer, play, tool), sizes)).result()
    with RunFolder.create(tmp_path / "run", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        run.append_tree(1, record_of(one))
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    library = Library([tmp_path / "run"], cache=tmp_path / "indexes")
    tree = library.answer("/api/runs/run/tree", {"step": "1", "task": one.grown.tree.task})
    rewritten = [node for node in tree["nodes"] if node["kind"] == "observation" and node["before"]]
    assert len(rewritten) > 2
    with served(library) as address, watched(browser) as page:
        page.goto(at(address, tree).replace("/tiny/", "/run/"))
        expect(bars(page)).to_have_count(len(tree["nodes"]))
        for node in rewritten[:2]:
            page.goto(at(address, tree, node=node["id"]).replace("/tiny/", "/run/"))
            dropped = page.locator(f"[data-segment='{node['id']}'] details", has_text="Context rewritten")
            expect(dropped).to_contain_text(f"{node['before']['tokens']:,} tokens became {node['tokens']:,} tokens")
            dropped.locator("summary").click()
            expect(dropped.locator("mark").first).to_contain_text("Lima is a city in Peru.")
            text = dropped.locator(".text").inner_text()
            assert text.split() == node["before"]["text"].split()


def test_two_branches_stand_side_by_side_from_their_fork(address, browser, tree):
    first, second = (leaf["place"] for leaf in tree["leaves"][:2])
    with watched(browser) as page:
        page.goto(at(address, tree, node=f"t{first}"))
        page.get_by_label("Compare with").select_option(second)
        compared = page.get_by_role("region", name="Two branches compared")
        expect(compared).to_contain_text(f"Branch {first} against {second}")
        texts = {node["id"]: node["text"] for node in tree["nodes"]}
        turns = compared.locator(".sides > .segment.turn")
        parts = [place.split(".") for place in (first, second)]
        fork = next(n for n, (a, b) in enumerate(zip(*parts, strict=False)) if a != b)
        for number, part in enumerate(parts):  # all of both texts, with what differs marked
            text = turns.nth(number).locator(".text").inner_text()
            assert text.strip() == texts["t" + ".".join(part[: fork + 1])].strip()
        page.reload()  # the comparison has an address
        expect(compared).to_contain_text(f"Branch {first} against {second}")
        compared.get_by_role("button", name="Swap").click()
        expect(compared).to_contain_text(f"Branch {second} against {first}")
        compared.get_by_role("button", name="Close the comparison").click()
        expect(page.locator("#reading")).to_be_visible()
        other = tree["leaves"][-1]
        page.locator(f"[id='tree-{other['node']}'] rect").first.click(modifiers=["Shift"])
        expect(compared).to_contain_text(f"against {other['place']}")


def test_a_tree_is_taken_along_as_svg_and_png(address, browser, tree):
    with watched(browser, dark=True) as page:
        page.goto(at(address, tree))
        with page.expect_download() as svg:
            page.get_by_role("button", name="SVG").click()
        drawn = svg.value.path().read_text(encoding="utf-8")
        root = ElementTree.fromstring(drawn)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and svg.value.suggested_filename.endswith(".svg")
        assert "var(" not in drawn and "href" not in drawn  # stands alone
        text = "".join(root.itertext())
        for leaf in tree["leaves"]:
            assert leaf["answer"] is None or leaf["answer"][:10] in text
        with page.expect_download() as png:
            page.get_by_role("button", name="PNG").click()
        assert png.value.path().read_bytes().startswith(b"\x89PNG\r\n")


def test_a_link_to_a_place_holds_no_token(address, browser, tree):
    with watched(browser) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(at(address, tree, node=tree["nodes"][1]["id"]))
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator(".take")).to_contain_text("Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "token" not in copied and f"node={tree['nodes'][1]['id']}" in copied
        page.goto("about:blank")
        page.goto(copied)
        expect(page.locator(".treebox [aria-selected=true]")).to_have_attribute("id", f"tree-{tree['nodes'][1]['id']}")


def test_zooming_keeps_the_chosen_segment_in_sight(address, browser, tree):
    with watched(browser, width=800) as page:
        page.goto(at(address, tree, node=tree["leaves"][-1]["node"]))
        expect(bars(page)).to_have_count(len(tree["nodes"]))
        for _ in range(6):
            page.get_by_role("button", name="Zoom in").click()
        window, bar = (
            page.locator(".treebox").bounding_box(),
            page.locator(".treebox [aria-selected=true] rect").first.bounding_box(),
        )
        assert window["x"] <= bar["x"] + bar["width"] and bar["x"] <= window["x"] + window["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        page.get_by_role("button", name="Fit").click()
        expect(page.get_by_role("button", name="Fit")).to_be_disabled()


def test_a_branch_that_ended_before_its_first_token_is_shown(tiny_run, tmp_path, browser):
    record = next(iter(RunFolder(tiny_run).trees(1)))
    place = (len(record.tree.children(())),)
    record.tree.end(place, StopReason.ENGINE_FAILED)
    with RunFolder.create(tmp_path / "tiny", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        run.append_tree(1, replace(record, scores={**record.scores, place: Score(reward=0.0, accuracy=0.0)}))
    with served(Library([run.path], cache=tmp_path / "i")) as address, watched(browser) as page:
        page.goto(f"{address}#/tiny/tree?step=1&task={quote(record.tree.task)}")
        expect(page.locator(".treebox")).to_contain_text("engine failed")


def test_mistakes_in_the_address_are_said(address, browser, tree):
    with watched(browser) as page:
        page.goto(f"{address}#/tiny/tree")
        expect(page.get_by_role("alert")).to_contain_text("names no tree")
        page.goto(at(address, tree, node="t9.9.9", vs="7.7", tint="nonsense", colour="nonsense"))
        expect(bars(page)).to_have_count(len(tree["nodes"]))


def test_an_answer_of_an_evaluation_shows_its_trajectory(tiny_run, tmp_path, browser):
    folder = tmp_path / "asked"
    shutil.copytree(tiny_run / "evaluation", folder / "evaluation")
    library = Library([folder], cache=tmp_path / "i")
    row = library.answer("/api/runs/asked/evaluation", {"name": "after"})["rows"][0]
    record = next(iter(RunFolder(tiny_run).trees(1)))
    evaluation = folder / "evaluation" / "after"
    samples = read_samples(evaluation).values()
    sample = next(sample for sample in samples if (sample.id, sample.sample) == (row["id"], row["sample"]))
    with SampleLog(evaluation) as log:  # of two lines for one sample the later counts
        log.append(sample, record)
    with served(library) as address, watched(browser) as page:
        page.goto(f"{address}#/asked/evaluation?name=after&id={quote(row['id'])}&sample={row['sample']}")
        expect(bars(page)).to_have_count(1 + len(record.tree.turns) + len(record.tree.observations))
        before = page.url
        page.locator(".treebox").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".treebox [aria-selected=true]")).to_have_attribute("id", "tree-t0")
        assert page.url == before
        assert serious(page) == []


def test_a_turn_shows_the_reward_that_it_earned(tiny_run, tmp_path, browser):
    """By the environment where there is one, else as all leaves below say; none where they differ, or nobody says."""
    source = RunFolder(tiny_run)
    record = next(record for record in source.trees(2) if any(len(place) > 1 for place in record.tree.turns))
    leaf = max(record.scores, key=len)
    given = {show(leaf[:1]): [0.25, False, None], show(leaf): [-1.5, True, None]}
    with RunFolder.create(tmp_path / "tiny", source.recipe.read_text(), {}) as run:
        run.append_tree(2, replace(record, notes={**record.notes, "environment": given}))
    library = Library([run.path], cache=tmp_path / "indexes")
    library.catch_up()
    with served(library) as address, watched(browser) as page:
        tree = library.answer("/api/runs/tiny/tree", {"step": "2", "task": record.tree.task})
        rewards = {node["place"]: node["reward"] for node in tree["nodes"] if node["kind"] == "turn"}
        assert {place: reward for place, reward in rewards.items() if reward is not None} == {
            place: step[0] for place, step in given.items()
        }
        about = page.get_by_role("region", name="The chosen segment")
        for place, shown in ((show(leaf[:1]), "[+]0.25"), (show(leaf), "[-−]1.5")):
            page.goto(at(address, tree, node=f"t{place}"))
            expect(about).to_contain_text(re.compile(f"{shown} for this turn"))
            expect(page.locator(f"[data-segment='t{place}'] header")).to_contain_text(re.compile(f"reward {shown}"))
        without = next(place for place in rewards if place not in given)
        page.goto(at(address, tree, node=f"t{without}"))
        expect(about).to_contain_text(f"turn {without}")
        expect(about).not_to_contain_text("for this turn")


def test_of_a_large_tree_only_what_is_in_sight_is_drawn(tiny_run, tmp_path, browser):
    record = large_tree()
    assert len(record.tree.leaves()) == 64
    last = f"t{show(record.tree.leaves()[-1])}"
    with RunFolder.create(tmp_path / "large", RunFolder(tiny_run).recipe.read_text(), {}) as run:
        run.append_tree(1, record)
    with served(Library([run.path], cache=tmp_path / "i")) as address, watched(browser) as page:
        page.goto(f"{address}#/large/tree?step=1&task=large")
        bars(page).first.wait_for()
        segments = 1 + len(record.tree.turns) + len(record.tree.observations)
        assert 0 < bars(page).count() < segments
        assert page.locator(f"[id='tree-{last}']").count() == 0
        page.locator(".treebox").focus()
        for _ in range(63):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("End")
        expect(page.locator(f"[id='tree-{last}']")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"[id='tree-{last}'] rect").first).to_be_in_viewport()
        assert bars(page).count() < segments
        assert page.evaluate("performance.getEntriesByName('tree-drawn').length") == 1


HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]")


@pytest.mark.parametrize("exported", [False, True])
def test_hostile_text_stays_text_wherever_a_tree_shows_it(nasty_run, tmp_path, browser, exported):
    library = Library([nasty_run], cache=tmp_path / "i")
    written = tmp_path / "page.html"
    if exported:
        export(library, written)
    with served(library) as address, watched(browser) as page:
        start = written.as_uri() if exported else address
        for number, text in enumerate(NASTY):
            page.goto("about:blank")
            page.goto(f"{start}#/nasty/tree?step=1&task=nasty%2F{number}&tint=plain")
            page.locator(".treebox [role=treeitem], main [role=alert]").first.wait_for()
            if exported and page.get_by_role("alert").count():
                assert (
                    len(text) > 100_000 and "does not hold" in page.get_by_role("alert").inner_text()
                )  # too large for one page
                continue
            page.locator(".treebox").focus()
            for key in ("ArrowRight", "ArrowRight", "End", "ArrowDown", "ArrowUp"):
                page.keyboard.press(key)
            page.locator(".treebox [aria-selected=true] rect").first.hover()
            assert_harmless(page)
            page.get_by_label("Search in this tree").fill(text[:40].replace("\x1b", "").replace("\x07", ""))
            if page.get_by_label("Compare with").count():
                page.get_by_label("Compare with").select_option(index=1)
                page.get_by_role("region", name="Two branches compared").wait_for()
                page.locator(".compare summary").click()
                assert_harmless(page)
            with page.expect_download() as svg:
                page.get_by_role("button", name="SVG").click()
            root = ElementTree.fromstring(svg.value.path().read_bytes())
            assert not HIDDEN.search("".join(root.itertext()))
            assert {element.tag.split("}")[1] for element in root.iter()} <= {
                "svg",
                "title",
                "rect",
                "text",
                "g",
                "path",
                "circle",
            }


def assert_harmless(page) -> None:
    assert page.locator("main script, main iframe, main a[href^='javascript:'], main img, main textarea").count() == 0
    assert not HIDDEN.search(page.locator("main").inner_text())


def test_an_export_holds_a_tree_with_its_tokens_with_the_network_off(library, tree, tmp_path, browser):
    written = tmp_path / "tree.html"
    export(library, written, (tree["step"], tree["task"]["id"]))
    with watched(browser) as page:
        page.context.set_offline(True)
        page.goto(written.as_uri())
        expect(bars(page)).to_have_count(len(tree["nodes"]))
        page.locator(".treebox").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".tokens > span")).not_to_have_count(0)
        with page.expect_download() as png:
            page.get_by_role("button", name="PNG").click()
        assert png.value.path().read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (390, True)]
)  # colours are the theme's, overflow is the width's
def test_axe_has_no_serious_finding_on_the_tree_and_nothing_overflows(address, browser, tree, width, dark):
    first, second = (leaf["place"] for leaf in tree["leaves"][:2])
    with watched(browser, width=width, height=844, dark=dark) as page:
        for query in (
            {"node": f"t{first}"},
            {"node": f"t{first}", "vs": second},
            {"tint": "advantage", "colour": "credit"},
        ):
            page.goto("about:blank")
            page.goto(at(address, tree, **query))
            bars(page).first.wait_for()
            if page.locator(".compare").count() == 0:
                page.locator(".segment.turn").first.scroll_into_view_if_needed()  # tokens are read for what is in sight
                page.locator(".tokens > span").first.wait_for()
                page.get_by_role("button", name="tokens").nth(1).click()
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
