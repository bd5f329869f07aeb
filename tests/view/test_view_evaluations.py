"""Evaluations of benchmarks: finished ones, those that go on, and what the world did to answers."""

import json

import pytest
from contract import Contract

from arpo.evaluation.manifest import BenchmarkManifest, EvalManifest, read_manifest, write_manifest
from arpo.evaluation.results import FILE as RESULTS
from arpo.evaluation.results import summarise
from arpo.evaluation.samples import FILE, SampleLog, SampleRecord
from arpo.view.library import Library, as_text
from arpo.view.sample_log import SampleLogReader

OVERLOADED = "the endpoint answered with status 503\nfour times"


def answer(number: int, *, right: bool = True, failure: str = "", benchmark: str = "sums", **more) -> SampleRecord:
    given = {"id": f"{benchmark}/{number}", "question": f"What is {number} plus 1?", "gold": (str(number + 1),), **more}
    ending = "engine_failed" if failure else "finished"
    accuracy = float(right and not failure)
    return SampleRecord(
        **given,
        benchmark=benchmark,
        accuracy=accuracy,
        correct=bool(accuracy),
        reward=accuracy,
        ending=ending,
        failure=failure,
    )


@pytest.fixture
def going(tmp_path):
    """A folder that an evaluation is being written into: 3 of 8 answers are there."""
    folder = tmp_path / "going"
    folder.mkdir()
    ids = tuple(f"sums/{n}" for n in range(4))
    about = {"title": "Sums", "metric": "exact match", "judged": False, "num_all": 4, "digest": "d"}
    benchmarks = (BenchmarkManifest(name="sums", ids=ids, **about),)
    settings = {"temperature": 1.0, "top_p": 1.0, "seed": 1}
    about = {"name": "going", "model": "a model", "recipe": "r", "preset": ""}
    write_manifest(folder, EvalManifest(**about, benchmarks=benchmarks, samples=2, settings=settings, decides={}))
    with SampleLog(folder) as log:
        log.append(answer(0, seconds=1.5, measures={"f1": 0.5}), None)
        log.append(answer(1, right=False), None)
        log.append(answer(2, failure=OVERLOADED), None)
    return folder


@pytest.fixture
def library(going, tmp_path):
    made = Library([going], cache=tmp_path / "i")
    yield made
    made.close()


def asked(library, what, **query):
    return json.loads(as_text(library.answer(f"/api/runs/going/{what}", query)))


def test_an_evaluation_that_goes_on_is_seen_as_far_as_it_came(library, going):
    (run,) = library.answer("/api/runs")["runs"]
    assert (run["kind"], run["evaluations"], run["state"]) == (
        "evaluation",
        ["sums"],
        "cut off before its end",
    )  # nobody writes
    table = asked(library, "evaluation", name="sums")
    assert Contract().faults(table, "Evaluation") == []
    assert (table["model"], table["answers"], table["missing"], table["failed"]) == ("a model", 3, 5, 1)
    assert table["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert table["failures"] == {"the endpoint answered with status 503": 1}
    with SampleLog(going) as log:
        log.append(answer(3), None)
        log.append(answer(0, benchmark="names"), None)
    assert asked(library, "evaluation", name="sums")["answers"] == 4
    assert library.answer("/api/runs")["runs"][0]["evaluations"] == ["sums", "names"]


def test_failed_answers_are_found_and_say_why(library):
    rows = asked(library, "evaluation", name="sums", failed="1")["rows"]
    assert [(row["id"], row["failed"], row["correct"]) for row in rows] == [("sums/2", True, False)]
    assert asked(library, "evaluation", name="sums", failed="0")["total"] == 2
    sample = asked(library, "sample", name="sums", id="sums/2")
    assert Contract().faults(sample, "Sample") == [] and sample["failure"] == OVERLOADED
    right = asked(library, "sample", name="sums", id="sums/0")
    assert (right["seconds"], right["measures"], right["failure"], right["tree"]) == (1.5, {"f1": 0.5}, "", None)


def test_what_is_finished_counts_until_the_log_holds_more(library, going):
    summarise(going, read_manifest(going))
    path = going / RESULTS
    path.write_text(path.read_text().replace('"metric": "exact match"', '"metric": "as it was written"'))
    table = asked(library, "evaluation", name="sums")
    assert Contract().faults(table, "Evaluation") == []
    assert table["metric"] == "as it was written" and table["measures"]["f1"]["mean"] == pytest.approx(0.5 / 3)
    assert "turns" in table["costs"] and library.answer("/api/runs")["runs"][0]["state"] == "finished"
    with SampleLog(going) as log:
        log.append(answer(3), None)
    table = asked(library, "evaluation", name="sums")
    assert (table["metric"], table["answers"]) == ("exact match", 4)
    path.write_text("{")
    assert asked(library, "evaluation", name="sums")["answers"] == 4, "damaged results are computed anew"


def test_the_log_is_read_on_cut_back_and_begun_anew(going):
    log = SampleLogReader(going)
    assert [key[1] for key in log.samples()] == ["sums/0", "sums/1", "sums/2"]
    path = going / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": "arpo/sam')  # a line that is being written
    assert len(log.samples()) == 3
    path.write_bytes(whole + (whole.splitlines()[0] + b"\n").replace(b'"accuracy": 1.0', b'"accuracy": 0.5'))
    assert (
        len(log.samples()) == 3 and log.samples()["sums", "sums/0", 0].sample.accuracy == 0.5
    )  # the later line counts
    path.write_bytes(whole.splitlines(keepends=True)[0])
    assert [key[1] for key in log.samples()] == ["sums/0"]
    path.unlink()
    assert log.samples() == {}


@pytest.mark.parametrize(
    "line", [b"no JSON\n", b'{"schema": "arpo/sample/9"}\n', b'{"schema": "arpo/sample/1", "id": 3}\n', b"[]\n"]
)
def test_a_damaged_line_is_named_and_the_others_count(library, going, line):
    path = going / FILE
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(line)
    with SampleLog(going) as log:
        log.append(answer(3), None)
    table = asked(library, "evaluation", name="sums")
    assert table["answers"] == 4
    (damage,) = table["damage"]
    assert f"byte {end}" in damage


def test_a_run_folders_own_samples_are_no_evaluation(tiny_run, tmp_path):
    library = Library([tiny_run], cache=tmp_path / "i")
    names = library.runs["tiny"].evaluations.names()
    assert "before" in names and set(names) == {path.name for path in (tiny_run / "evaluation").iterdir()}
    library.close()
