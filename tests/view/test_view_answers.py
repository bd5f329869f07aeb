"""The answers: they fit the contract, and say what the records say."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest
from contract import Contract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.core.place import show
from arpo.core.tree import probe_lines
from arpo.errors import ConfigError
from arpo.evaluation.samples import SampleLog, read_samples
from arpo.runs.folder import RunFolder
from arpo.training.metrics import POSITIONS
from arpo.view.forks import forks
from arpo.view.library import Library, NotHereError, as_text

RUN = "/api/runs/tiny"


@pytest.fixture(scope="module")
def contract():
    return Contract()


def everything(library):
    """(the type's name, an answer) for every kind of request."""
    yield "Runs", library.answer("/api/runs")
    for name, viewed in library.runs.items():
        base = f"/api/runs/{name}"
        yield "Run", library.answer(base)
        yield "Run", library.answer(base, {"against": next(iter(library.runs))})
        yield "Metrics", library.answer(f"{base}/metrics")
        yield "Entropy", library.answer(f"{base}/entropy", {"windows": "2"})
        trees = library.answer(f"{base}/trees")
        yield "Trees", trees
        for row in trees["rows"][:4]:
            asked = {"step": str(row["step"]), "task": row["task"]}
            tree = library.answer(f"{base}/tree", asked)
            yield "Tree", tree
            for node in tree["nodes"]:
                yield "Tokens", library.answer(f"{base}/tokens", {**asked, "node": node["id"]})
        for evaluation in viewed.evaluations.names():
            table = library.answer(f"{base}/evaluation", {"name": evaluation})
            yield "Evaluation", table
            row = table["rows"][0]
            yield (
                "Sample",
                library.answer(f"{base}/sample", {"name": evaluation, "id": row["id"], "sample": str(row["sample"])}),
            )


def test_every_answer_fits_the_contract(library, contract):
    seen = set()
    for name, answer in everything(library):
        assert contract.faults(json.loads(as_text(answer)), name) == []
        seen.add(name)
    assert seen == {"Runs", "Run", "Metrics", "Entropy", "Trees", "Tree", "Tokens", "Evaluation", "Sample"}


def test_the_contract_notices_what_does_not_fit(library, contract):
    answer = library.answer("/api/runs")
    assert contract.faults({**answer, "more": 1}, "Runs") == ["Runs.more is not in the contract"]
    assert contract.faults({"runs": answer["runs"]}, "Runs") == ["Runs.version is missing"]
    assert contract.faults({**answer, "version": None}, "Runs") != []


def test_nasty_texts_arrive_as_they_were(nasty_run, tmp_path, contract):
    from recorded import NASTY

    library = Library([nasty_run], cache=tmp_path / "i")
    library.catch_up()
    for number, text in enumerate(NASTY):
        tree = json.loads(as_text(library.answer("/api/runs/nasty/tree", {"step": "1", "task": f"nasty/{number}"})))
        assert contract.faults(tree, "Tree") == []
        assert tree["nodes"][0]["text"] == text and tree["task"]["question"] == text
        slips = {call["mended"] for node in tree["nodes"] for call in node.get("calls", ())}
        assert slips <= {text} and (slips or number)
    assert all(contract.faults(json.loads(as_text(answer)), name) == [] for name, answer in everything(library))
    library.close()


def test_rows_say_what_the_records_say(library, tiny_run):
    run = RunFolder(tiny_run)
    rows = {(row["step"], row["task"]): row for row in library.answer(f"{RUN}/trees")["rows"]}
    records = [record for step in run.event_steps() for record in run.trees(step)]
    assert len(rows) == len(records)
    for record in records:
        row, tree = rows[record.tree.step, record.tree.task], record.tree
        rewards = [score.reward for score in record.scores.values()]
        assert row["leaves"] == len(tree.leaves())
        assert row["reward_mean"] == (pytest.approx(sum(rewards) / len(rewards)) if rewards else None)
        assert row["tokens"] == sum(len(turn.tokens) for turn in tree.turns.values())
        assert row["branches"] == sum(turn.role == "sibling" for turn in tree.turns.values())
        assert sum(row["endings"].values()) == row["leaves"]
        assert (row["helped"] is None) == (not any(sum(fork.compared) for fork in forks(record)))


def test_the_figures_add_up_to_the_runs_metrics(library, tiny_run):
    for line in RunFolder(tiny_run).metrics():
        rows = library.answer(f"{RUN}/trees", {"step": str(line["step"])})["rows"]
        assert sum(row["tokens"] for row in rows) == line["tokens/generated"]
        assert sum(row["branches"] for row in rows) == line.get("decisions/granted", 0)
        assert sum(row["leaves"] for row in rows) == line["leaves/all"]


def test_curves_are_the_means_that_the_run_measured(library, tiny_run):
    lines = RunFolder(tiny_run).metrics()
    entropy = library.answer(f"{RUN}/entropy", {"windows": str(len(lines))})
    assert len(entropy["windows"]) == len(lines)
    for curve in entropy["curves"]:
        if curve["window"] is None or curve["tool"] is not None:
            continue
        line = lines[curve["window"]]
        name = "first" if curve["around"] == "first" else "after_tool"
        found = dict(zip(curve["positions"], curve["mean"], strict=True))
        for position in range(POSITIONS):
            expected = line.get(f"entropy_at/{name}/{position:02d}")
            assert (expected is None) == (position not in found)
            assert expected is None or found[position] == pytest.approx(expected, rel=1e-5)
        assert all(
            low <= mean <= high for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True)
        )


def test_every_compared_pair_is_in_one_bucket(library, tiny_run):
    run = RunFolder(tiny_run)
    found = [fork.compared for step in run.event_steps() for record in run.trees(step) for fork in forks(record)]
    buckets = library.answer(f"{RUN}/entropy")["calibration"]
    counted = [sum(c) for c in zip((0, 0, 0), *found, strict=True)]
    assert [sum(b[name] for b in buckets) for name in ("better", "equal", "worse")] == counted
    assert all(b["low"] <= b["high"] and b["n"] == b["better"] + b["equal"] + b["worse"] for b in buckets)


def test_what_branching_paid_off_over_training_adds_up(library):
    entropy = library.answer(f"{RUN}/entropy", {"windows": "2"})
    assert [(part["first"], part["last"]) for part in entropy["payoffs"]] == [(1, 1), (2, 2)]
    for name in ("n", "better", "equal", "worse"):
        assert sum(part[name] for part in entropy["payoffs"]) == sum(bucket[name] for bucket in entropy["calibration"])


def test_trees_hold_together(library, tiny_run):
    run = RunFolder(tiny_run)
    for record in run.trees(1):
        asked = {"step": "1", "task": record.tree.task}
        tree = library.answer(f"{RUN}/tree", asked)
        seen: set[str] = set()
        for node in tree["nodes"]:
            assert node["parent"] is None if node["id"] == "-" else node["parent"] in seen  # preorder
            seen.add(node["id"])
            tokens = library.answer(f"{RUN}/tokens", {**asked, "node": node["id"]})
            assert len(tokens["ids"]) == node["tokens"] == len(tokens["pieces"])
            assert "".join(tokens["pieces"]) == node["text"]
            assert all(
                tokens[name] is None or len(tokens[name]) == node["tokens"]
                for name in ("logprobs", "entropies", "advantages")
            )
        assert {leaf["node"] for leaf in tree["leaves"]} <= seen
        assert [leaf["place"] for leaf in tree["leaves"]] == [show(leaf) for leaf in record.tree.leaves()]
        lines = {show(leaf) for leaf in probe_lines(record.tree, record.config.roots)}
        assert {leaf["place"] for leaf in tree["leaves"] if leaf["probe_line"]} == lines
        for node in tree["nodes"]:
            if node.get("decision"):
                assert node["decision"]["granted"] == len(node["decision"]["siblings"])
                assert node["decision"]["granted"] <= node["decision"]["budget"]


ROWS = {
    "step": lambda row, v: row["step"] == int(v),
    "family": lambda row, v: row["family"] == v,
    "ending": lambda row, v: v in row["endings"],
    "tool": lambda row, v: v in row["tools"],
    "helped": lambda row, v: row["helped"] == int(v),
    "min_reward": lambda row, v: row["reward_mean"] is not None and row["reward_mean"] >= float(v),
    "max_reward": lambda row, v: row["reward_mean"] is not None and row["reward_mean"] <= float(v),
    "branches": lambda row, v: row["branches"] >= int(v),
    "min_step": lambda row, v: row["step"] >= int(v),
    "max_step": lambda row, v: row["step"] <= int(v),
    "q": lambda row, v: v.lower() in row["question"].lower() or v.lower() in row["task"].lower(),
}
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "step": st.sampled_from(["1", "2", "3"]),
        "family": st.sampled_from(["one digit", "two digits", "%"]),
        "ending": st.sampled_from(["finished", "turn_length", "call_limit"]),
        "tool": st.sampled_from(["parity", "' OR 1=1 --"]),
        "helped": st.sampled_from(["-1", "0", "1"]),
        "min_reward": st.sampled_from(["-1", "0", "0.5"]),
        "max_reward": st.sampled_from(["0", "0.5", "1"]),
        "branches": st.sampled_from(["0", "1", "2"]),
        "min_step": st.sampled_from(["0", "1", "2", "3"]),
        "max_step": st.sampled_from(["0", "1", "2", "3"]),
        "q": st.sampled_from(["PARITY", "1", "_", "%", "'"]),
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    VALUES, st.sampled_from([None, "reward_mean", "-tokens", "-helped", "task"]), st.integers(0, 3), st.integers(0, 5)
)
def test_filters_and_sorting(library, values, sort, offset, limit):
    rows = library.answer(f"{RUN}/trees", {"limit": "1000"})["rows"]
    fitting = [row for row in rows if all(ROWS[name](row, value) for name, value in values.items())]
    asked = {**values, **({"sort": sort} if sort else {})}
    every = library.answer(f"{RUN}/trees", {**asked, "limit": "1000"})
    assert every["total"] == len(fitting)
    assert sorted(every["rows"], key=rows.index) == fitting
    if sort:
        column = sort.removeprefix("-")
        found = [row[column] for row in every["rows"] if row[column] is not None]
        assert found == sorted(found, reverse=sort.startswith("-"))
    else:
        assert every["rows"] == fitting
    rewards = [row["reward_mean"] for row in fitting if row["reward_mean"] is not None]
    assert every["reward_mean"] == (pytest.approx(sum(rewards) / len(rewards)) if rewards else None)
    others = [
        row["helped"]
        for row in rows
        if all(ROWS[name](row, value) for name, value in values.items() if name != "helped")
    ]
    assert [every["branching"][name] for name in ("helped", "hurt", "same", "unbranched")] == [
        *map(others.count, (1, -1, 0, None))
    ]
    page = library.answer(f"{RUN}/trees", {**asked, "offset": str(offset), "limit": str(limit)})
    assert page["rows"] == every["rows"][offset : offset + limit] and page["total"] == every["total"]


def test_metrics_in_parts_are_the_metrics(library, tiny_run):
    whole = library.answer(f"{RUN}/metrics")
    part = library.answer(f"{RUN}/metrics", {"after": "1"})
    assert whole["steps"] == [1, 2] and part["steps"] == [2] and part["generation"] == whole["generation"]
    assert all(values == whole["series"][name][1:] for name, values in part["series"].items())
    assert all(v is None or math.isfinite(v) for values in whole["series"].values() for v in values)


def test_events_tell_start_checkpoints_and_evaluations(library):
    kinds = [event["kind"] for event in library.answer(RUN)["events"]]
    assert kinds[0] == "started" and {"checkpoint", "evaluation"} <= set(kinds)


def test_recipes_differ_where_they_differ(library, tiny_run, tmp_path):
    other = tmp_path / "other"
    text = RunFolder(tiny_run).recipe.read_text().replace("tau: 0.5", "tau: 0.6")
    RunFolder.create(other, text, {}).close()
    both = Library([tiny_run, other], cache=tmp_path / "i")
    assert both.answer("/api/runs/other", {"against": "tiny"})["differences"] == [
        {"key": "rollout.rule.tau", "here": 0.6, "there": 0.5}
    ]
    assert both.answer("/api/runs/tiny", {"against": "tiny"})["differences"] == []
    both.close()


def test_evaluations_are_filtered(library):
    table = library.answer(f"{RUN}/evaluation", {"name": "after", "limit": "1000"})
    right = library.answer(f"{RUN}/evaluation", {"name": "after", "correct": "1"})
    wrong = library.answer(f"{RUN}/evaluation", {"name": "after", "correct": "0"})
    assert right["total"] + wrong["total"] == table["total"] == table["questions"]
    assert all(row["correct"] for row in right["rows"])
    best = library.answer(f"{RUN}/evaluation", {"name": "after", "sort": "-reward"})["rows"]
    assert best[0]["reward"] == max(row["reward"] for row in table["rows"])


def test_a_folder_with_evaluations_alone(tiny_run, tmp_path, contract):
    import shutil

    shutil.copytree(tiny_run / "evaluation", tmp_path / "asked" / "evaluation")
    library = Library([tmp_path / "asked"])
    for name, answer in everything(library):
        assert contract.faults(json.loads(as_text(answer)), name) == []
    (run,) = library.answer("/api/runs")["runs"]
    assert run["kind"] == "evaluation" and run["steps"] == 0 and "after" in run["evaluations"]
    library.close()


def test_an_answer_that_was_recorded_in_full_has_its_tree(tiny_run, tmp_path, contract):
    folder = tmp_path / "asked"
    shutil.copytree(tiny_run / "evaluation", folder / "evaluation")
    library = Library([folder], cache=tmp_path / "i")
    row = library.answer("/api/runs/asked/evaluation", {"name": "after"})["rows"][0]
    asked = {"name": "after", "id": row["id"], "sample": str(row["sample"])}
    assert library.answer("/api/runs/asked/sample", asked)["tree"]["task"]["id"] == row["id"]
    records = list(RunFolder(tiny_run).trees(1))[:2]
    after = folder / "evaluation" / "after"
    given = next(each for key, each in read_samples(after).items() if key[1:] == (row["id"], row["sample"]))
    with SampleLog(after) as log:
        for record in records:  # of two lines for one answer the later counts
            log.append(given, record)
        log.append(replace(given, sample=99), None)
    with (after / "samples.jsonl").open("a") as file:
        file.write('{"cut')
    answer = library.answer("/api/runs/asked/sample", asked)
    assert contract.faults(answer, "Sample") == []
    assert answer["tree"]["task"]["id"] == records[1].tree.task and answer["tree"]["step"] == 0
    assert library.answer("/api/runs/asked/sample", {**asked, "sample": "99"})["tree"] is None
    library.close()


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        (f"{RUN}/trees", {"colour": "red"}, "known: "),
        (f"{RUN}/trees", {"limit": "100000"}, "from 0 to 1000"),
        (f"{RUN}/trees", {"offset": "-1"}, "from 0"),
        (f"{RUN}/trees", {"step": "1; DROP TABLE trees"}, "whole number"),
        (f"{RUN}/trees", {"sort": "task; DROP TABLE trees"}, "one of step"),
        (f"{RUN}/trees", {"min_reward": "much"}, "a number"),
        (f"{RUN}/trees", {"step": "9" * 30}, "too large"),
        (f"{RUN}/tree", {"step": "1"}, "query task: is missing"),
        (f"{RUN}/entropy", {"windows": "1000"}, "from 1 to 20"),
        (f"{RUN}/evaluation", {"name": "../../summary"}, "no such evaluation"),
        (f"{RUN}/evaluation", {"name": "after", "sort": "__class__"}, "one of"),
        (f"{RUN}/sample", {"name": "after", "id": "nobody"}, "no such answer"),
    ],
)
def test_queries_without_sense_are_named(library, path, query, says):
    with pytest.raises(ConfigError, match=says):
        library.answer(path, query)


@pytest.mark.parametrize(
    "path", ["/api/runs/no", "/api", "/", "/api/runs/tiny/files", "/api/runs/../tiny", "/api/runs/tiny/trees/x"]
)
def test_what_does_not_exist_is_not_here(library, path):
    with pytest.raises(NotHereError):
        library.answer(path)


def test_trees_and_nodes_that_do_not_exist(library):
    with pytest.raises(NotHereError, match="no such tree"):
        library.answer(f"{RUN}/tree", {"step": "1", "task": "nobody"})
    task = library.answer(f"{RUN}/trees")["rows"][0]["task"]
    for node in ("t9", "o0.0.0.0.0", "x0", "t", "t-", "", "t1e9"):
        with pytest.raises(ConfigError):
            library.answer(f"{RUN}/tokens", {"step": "1", "task": task, "node": node})


def test_folders_of_one_name_have_addresses_of_their_own(tiny_run, tmp_path):
    import shutil

    for parent in ("a", "b"):
        (tmp_path / parent / "tiny run?").mkdir(parents=True)
        shutil.copy(tiny_run / "recipe.yaml", tmp_path / parent / "tiny run?")
    library = Library([tmp_path / "a" / "tiny run?", tmp_path / "b" / "tiny run?", tmp_path / "a" / "tiny run?"])
    assert list(library.runs) == ["tiny-run", "tiny-run-2"]
    library.close()


def test_no_bar_holds_both_rises_and_falls(library):
    bars = library.answer(f"{RUN}/entropy")["rises"]
    assert sum(bar["tips"] for bar in bars) > 0
    assert all(bar["high"] <= 0 or bar["low"] >= 0 for bar in bars)
    assert all(a["high"] == b["low"] for a, b in itertools.pairwise(bars))
