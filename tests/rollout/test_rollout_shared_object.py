"""Two tools over one connection of sqlite3, which belongs to the thread that made it, under many branches at the same
time."""

import asyncio
import sqlite3
from dataclasses import replace
from random import Random

import arpo
from arpo.core import CallStatus
from arpo.engines import SamplingParams
from arpo.tools.config import ToolsConfig, build_entries
from arpo.tools.gateway import build_gateway
from small_world import ANSWER, Script, agent, config, rollouts, task


class Ledger:
    """Its two tools read and write in more than one statement, so calls that ran at once would spoil each other."""

    def __init__(self, file: str = ":memory:") -> None:
        self.db = sqlite3.connect(file)  # as one writes it: no check_same_thread, no lock
        self.db.execute("create table entries (number integer primary key, word text)")

    @arpo.tool
    def note(self, word: str) -> str:
        """Writes a word down and says its number."""
        (last,) = self.db.execute("select coalesce(max(number), 0) from entries").fetchone()
        with self.db:
            self.db.execute("insert into entries values (?, ?)", (last + 1, word))
        return f"number {last + 1}"

    @arpo.tool
    def count(self, word: str) -> str:
        """Says how often a word was written down."""
        return str(self.db.execute("select count(*) from entries where word = ?", (word,)).fetchone()[0])


def calls_some(prompt: object, params: SamplingParams) -> Script:
    draw = Random(f"{params.seed}/says")
    said = draw.choices(["<note>Lima</note>", "<count>Lima</count>", ANSWER], [4, 2, 1])[0]
    return Script(said=f"<think>{draw.choice(['capital', 'Peru'])}</think>{said}")


def test_two_tools_over_one_connection_of_sqlite_under_many_branches(tokenizer) -> None:
    offered = ToolsConfig(offered=(Ledger,))
    entries = build_entries(offered.offered)
    ((note, count),) = entries
    who = replace(agent(tokenizer, calls_some, note, count), tool_gateway=build_gateway(offered, entries))
    rules = config(leaves=16, roots=8, rule={"rule": "random", "rates": [0.6]}, max_calls=6)
    grown = asyncio.run(rollouts(who, rules, *(task(number) for number in range(12)), in_flight=12))
    outcomes = [o for one in grown for seen in one.grown.tree.observations.values() for o in seen.outcomes]
    ran = [o for o in outcomes if o.status is not CallStatus.REFUSED]  # refused: no calls left
    noted = [o.text for o in ran if o.tool == "note"]
    assert len(ran) > 300 and {o.status for o in ran} == {CallStatus.OK}, {
        o.text for o in ran if o.status is not CallStatus.OK
    }
    assert len(set(noted)) == len(noted) > 100, "no two calls were given one number"
