"""The export is one file that needs nobody, holds the same answers, and runs nothing but its own script."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from contract import Contract
from recorded import NASTY

from arpo.cli.viewing import view
from arpo.errors import ConfigError
from arpo.view.library import Library, NotHereError
from arpo.view.page import ViewerPage, built_page, export, self_contained


class Read(HTMLParser):
    """The elements of a page, and what stands in its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] in ("script", "style") and text.strip():
            *earlier, last = self.inside or [None]
            if last is not None and last[:2] == self.elements[-1]:  # the parser hands a long text out in pieces
                self.inside = [*earlier, (*last[:2], last[2] + text)]
            else:
                self.inside.append((*self.elements[-1], text))

    def data(self):
        (found,) = [text for _, attributes, text in self.inside if attributes.get("id") == "arpo-data"]
        return json.loads(found)


def test_an_exported_run_holds_what_the_server_would_answer(library, tmp_path):
    assert export(library, tmp_path / "page.html") == ""
    data = Read((tmp_path / "page.html").read_text()).data()
    assert Contract().faults(data, "Embedded") == []
    assert data["metrics"]["tiny"]["steps"] == [1, 2]
    rows = library.answer("/api/runs/tiny/trees", {"limit": "1000"})["rows"]
    assert data["trees"]["tiny"]["rows"] == rows
    for row in rows:
        asked = {"step": str(row["step"]), "task": row["task"]}
        key = json.dumps(["tiny", row["step"], row["task"]], separators=(",", ":"))
        assert data["tree"][key] == library.answer("/api/runs/tiny/tree", asked)
        for node in data["tree"][key]["nodes"]:
            of_node = json.dumps(["tiny", row["step"], row["task"], node["id"]], separators=(",", ":"))
            assert data["tokens"][of_node] == library.answer("/api/runs/tiny/tokens", {**asked, "node": node["id"]})
    assert data["evaluation"]['["tiny","after"]']["total"] == len(
        [k for k in data["sample"] if '"after"' in k.split(",")[1]]
    )


def test_it_asks_nobody_for_anything_and_names_its_script_by_hash(library, tmp_path):
    export(library, tmp_path / "page.html")
    page = Read((tmp_path / "page.html").read_text())
    asked = [attributes[a] for _, attributes in page.elements for a in ("src", "href", "action") if a in attributes]
    assert all(address.startswith("data:") for address in asked)  # the icon
    (policy,) = [
        a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src" not in policy
    code = [(tag, text) for tag, attributes, text in page.inside if attributes.get("type") != "application/json"]
    assert [tag for tag, _ in code] == ["style", "script"]
    for _, text in code:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    tags = [tag for tag, _ in page.elements]
    assert tags.index("meta") < tags.index("style") < tags.index("script")


def test_nasty_texts_stay_inside_the_data(nasty_run, tmp_path):
    library = Library([nasty_run], cache=tmp_path / "i")
    library.catch_up()
    export(library, tmp_path / "page.html", most_bytes=1 << 30)
    text = (tmp_path / "page.html").read_text()
    page = Read(text)
    assert not [tag for tag, _ in page.elements if tag in ("img", "textarea")]
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2
    data = page.data()
    for number, nasty in enumerate(NASTY):
        assert data["tree"][f'["nasty",1,"nasty/{number}"]']["nodes"][0]["text"] == nasty
    block = re.search(r'id="arpo-data">(.*?)</script>', text, re.S)[1]
    assert "<" not in block
    library.close()


def test_one_tree_alone(library, tmp_path):
    row = library.answer("/api/runs/tiny/trees")["rows"][-1]
    export(library, tmp_path / "tree.html", (row["step"], row["task"]))
    data = Read((tmp_path / "tree.html").read_text()).data()
    assert Contract().faults(data, "Embedded") == []
    assert data["start"] == {"run": "tiny", "step": row["step"], "task": row["task"]}
    assert len(data["tree"]) == 1 and data["trees"]["tiny"]["rows"] == [row]
    with pytest.raises(NotHereError):
        export(library, tmp_path / "no.html", (1, "nobody"))
    assert not (tmp_path / "no.html").exists()


def test_what_does_not_fit_is_left_out_and_said(library, tmp_path):
    note = export(library, tmp_path / "page.html", most_bytes=60_000)
    data = Read((tmp_path / "page.html").read_text()).data()
    assert note == data["note"] and re.match(r"\d of 6 trees", note)
    assert len(data["trees"]["tiny"]["rows"]) == 6
    kept = [json.loads(key)[1] for key in data["tree"]]
    assert kept == sorted(kept, reverse=True)


def test_a_script_that_speaks_of_scripts_does_not_end_early():
    html = (
        '<!doctype html><html><head><meta charset="utf-8"><script src="./app.js"></script></head><body></body></html>'
    )
    page = Read(self_contained(ViewerPage(html, 'a = "</script><!--"', "", "app.js", "app.css"), {"x": "</script>"}))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert page.inside[-1][2] == 'a = "<\\/script><\\!--"' and page.data() == {"x": "</script>"}


def test_the_command_says_what_it_wrote_and_names_mistakes(tiny_run, tmp_path, capsys):
    view([tiny_run], port=None, browser=False, export=tmp_path / "p.html", tree=None)
    assert re.search(r"wrote .*p\.html \(\d+\.\d MB\)", capsys.readouterr().out)
    for tree in ("1", "one:task", ":task", "1:"):
        with pytest.raises(ConfigError, match="STEP:TASK"):
            view([tiny_run], port=None, browser=False, export=tmp_path / "q.html", tree=tree)
    with pytest.raises(ConfigError, match="--export"):
        view([tiny_run], port=None, browser=False, export=None, tree="1:a")


def test_the_built_page_is_one_page_one_script_one_style():
    page = built_page()
    assert f'src="./{page.script_at}"' in page.html and f'href="./{page.style_at}"' in page.html
    outside = [
        a for _, attributes in Read(page.html).elements for n, a in attributes.items() if n in ("src", "href") and a
    ]
    assert all(not address.startswith(("http", "//")) for address in outside)
