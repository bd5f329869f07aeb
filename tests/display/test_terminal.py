"""What is printed is text: no markup, nothing that controls the terminal, whatever it came from."""

import io
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from arpo.display.tables import ShownTable, markdown_table
from arpo.display.terminal import Console
from arpo.files import read_json, write_json
from arpo.terminal_safe import json_safe, print_line, terminal_safe

NAMES = [
    "[INST]x[/INST]",
    "[link=https://example.com]y[/link]",
    "[red]",
    "[/]",
    ":smile:",
    "\x1b]0;title\x07",
    "\x9b2J",
]
ACTING = st.sampled_from("\x1b\x07\x9b\x85\u202e\u200b\u2028\ud800\U000e0041\r\x00ab[/]")


def test_names_from_data_are_shown_as_they_are() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, color_system=None)
    for name in NAMES:
        table = Table(name, title=name, caption=name)
        table.add_row(name)
        shown = ShownTable(title=name, head=[name], rows=[[name]], note=name).rich()
        for renderable in (name, Text(name), table, shown, Panel(name)):
            console.print(renderable)
        console.rule(Text(name))
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue() and "\x9b" not in out.getvalue()
    for name in NAMES[:5]:
        assert out.getvalue().count(name) >= 10, name


def test_cells_of_a_report_are_neither_html_nor_links() -> None:
    cell = r"[c](http://e) ![i](http://e) [a][b] <img src=x onerror=1> a|b \<b>"
    last = markdown_table(["x"], [[cell]]).splitlines()[-1]
    assert last == r"| [c\](http://e) ![i\](http://e) [a\][b] \<img src=x onerror=1> a\|b \\\<b> |"


@given(text=st.text(ACTING | st.characters()))
def test_no_line_holds_a_control_character(text: str) -> None:
    console, line = io.StringIO(), io.StringIO()
    Console(file=console, soft_wrap=True).print(text)
    print_line(text, line)
    for shown in (console.getvalue(), line.getvalue()):
        assert terminal_safe(shown) == shown


@given(value=st.dictionaries(st.text(ACTING), st.text(ACTING)))
def test_json_keeps_its_values_and_shows_no_control_characters(value: dict[str, str]) -> None:
    text = json_safe(json.dumps(value, ensure_ascii=False, indent=1))
    assert terminal_safe(text) == text and json.loads(text) == value


def test_a_file_of_json_shows_none_either(tmp_path: Path) -> None:
    value = {"a\u202e": "\x9b2J\U000e0041"}
    assert read_json(write_json(tmp_path / "f.json", value)) == value
    assert (tmp_path / "f.json").read_text().isascii()
