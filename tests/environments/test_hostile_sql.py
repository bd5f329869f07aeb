"""Statements that want the trainer's memory or time, a branch that hangs, or an episode that is not scored."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from arpo.environments import AgentTurn
from arpo.environments.sql import SqlEnvironment
from arpo.errors import ToolError
from arpo.tasks import Task

SCRIPT = "create table s (item text, kilos int); insert into s values ('tea', 1), ('rice', 2);"
NUMBERS = "with recursive c(x) as (select 1 union all select x + 1 from c)"
REFUSED = {
    "a file": "attach '/tmp/x.db' as x",
    "a file for a copy": "vacuum into '/tmp/x.db'",
    "a pragma as a table": "select * from pragma_database_list",
    "an extension": "select load_extension('/x')",
    "a transaction that stays open": "begin exclusive",
    "a savepoint": "savepoint x",
    "a temporary table, which no branch would have": "create temp table s as select 3 kilos",
    "a giant value": "select zeroblob(1000000000)",
    "a giant value in between": "select length(hex(zeroblob(400000000)))",
    "a giant format": "select length(printf('%.*c', 2000000000, 'x'))",
    "a wide format": "select length(format('%2000000000d', 1))",
    "a value that grows": f"{NUMBERS} select group_concat(hex(zeroblob(1000))) from c",
    "rows without an end": f"{NUMBERS} select count(*) from c",
    "rows that are sorted": f"{NUMBERS} select x from c order by hex(randomblob(5000)) limit 1",
    "a long search, often": f"{NUMBERS} select count(*) from c where instr(hex(zeroblob(49900)), '0000' || x)",
    "a pattern": "select hex(zeroblob(40000)) like replace(hex(zeroblob(2000)), '00', '%a') || 'b'",
    "half a character": "select '\ud800'",
    "two statements": "select 1; drop table s",
    "a function at an address": "select fts3_tokenizer('simple', x'4141414141414141')",
    "the address of a function": "select FTS3_Tokenizer('simple')",
    "a virtual table": "create virtual table v using fts4(x)",
    "a virtual table of another kind": "create virtual table v using rtree(i, a, b)",
    "a message that is no UTF-8": "select json_extract('1', x'cb0c')",
}


def database(seconds: float = 60.0, **setup: Any) -> SqlEnvironment:
    made = SqlEnvironment(SCRIPT, seconds=seconds)
    made.reset(Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",), setup=setup))
    return made


def sql(made: SqlEnvironment, statement: str) -> str:
    return made.sql(statement)  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", REFUSED)
def test_a_statement_takes_neither_files_nor_memory_nor_time(what: str) -> None:
    made, began = database(seconds=0.3), time.thread_time()
    with pytest.raises(ToolError):
        sql(made, REFUSED[what])
    assert time.thread_time() - began < 5  # of processor time, for 0.3 s
    made.seconds = 60.0
    assert sql(made.fork(), "select sum(kilos) from s") == "sum(kilos)\n3"


def test_a_result_is_small_and_trimming_takes_no_minute() -> None:
    wide = f"{NUMBERS} select {', '.join(['zeroblob(9000)'] * 9)} from c"
    assert len(sql(database(), wide)) < 51 * 9 * 20_000
    long = "trim(replace(hex(zeroblob(49900)), '0', 'a'), replace(hex(zeroblob(49900)), '0', 'b') || 'a')"
    assert sql(database(), f"select length({long})").endswith("\n0")


def test_functions_that_were_replaced_are_as_sqlite_has_them() -> None:
    trims = "trim('xxaxx', 'x'), ltrim('xa', 'x'), rtrim(12.5, '5'), trim(null, 'x'), trim('  a ')"
    query = f"select printf('%.2f|%5d|%s|%%', 1.5, 7, 'x'), {trims}"
    made = database()
    replaced = sql(made, query).splitlines()[1]
    assert replaced == " | ".join(map(str, sqlite3.connect(":memory:").execute(query).fetchone()))


@pytest.mark.parametrize(
    "statements",
    [
        ["drop table s"],
        ["alter table s rename column kilos to k"],
        ["drop table s", f"create view s as {NUMBERS} select x as kilos from c"],
        ["drop table s", "create view s as select zeroblob(900000000) as kilos"],
        ["drop table s", "create view s as select json_extract('1', x'cb0c') as kilos"],
    ],
)
def test_a_check_that_fails_is_a_bad_score_and_no_failure_of_the_environment(statements: list[str]) -> None:
    """Which would take the branch out of its group."""
    made = database(check="select sum(kilos) from s", rows=[[3]])
    assert made.step(AgentTurn(text="a", answer="a")).reward == 1.0
    for statement in statements:
        sql(made, statement)
    made.seconds = 0.3
    assert made.step(AgentTurn(text="a", answer="a")).reward == 0.0


SCRIPTS = {
    "a file": "attach '$FOLDER/x.db' as x; create table x.t(a);",
    "a file for a copy": "vacuum into '$FOLDER/x.db';",
    "a function at an address": "select fts3_tokenizer('simple', x'4141414141414141');",
    "a virtual table": "create virtual table v using fts4(x);",
    "another schema": "pragma writable_schema = on;",
    "more room": "pragma max_page_count = 1073741823;",
    "rows without an end": f"create table t as {NUMBERS} select x from c where x < 0;",
    "a giant value": "create table t as select length(randomblob(900000000)) as n;",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_the_script_of_a_task_takes_neither_files_nor_memory_nor_time(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arpo.environments.sql.SCRIPT_S", 0.3)
    with pytest.raises(sqlite3.Error):
        database(script=SCRIPTS[what].replace("$FOLDER", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_task_s_script_is_a_dump_and_the_recipe_s_may_do_what_it_likes(tmp_path: Path) -> None:
    from_dump = database(
        script="PRAGMA foreign_keys=OFF; BEGIN TRANSACTION; create table t(a); insert into t values(1);"
    )
    assert sql(from_dump.fork(), "select sum(a) from t") == "sum(a)\n1"  # a transaction that stays open is ended
    own = SqlEnvironment(f"attach '{tmp_path}/own.db' as own; create table own.t(a);")
    own.reset(Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)))
    assert (tmp_path / "own.db").exists()
