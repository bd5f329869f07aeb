"""The best and worst branch of a step, as a run prints them."""

import io
from dataclasses import dataclass, replace
from typing import Any

from arpo.core.record import TreeRecord
from arpo.core.score import Score
from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.training.batch import MAX_CHARS, best_and_worst
from arpo.training.pipeline import train


@dataclass
class Words:
    """Writes every token as a word."""

    word: str = "word"

    def text(self, tokens: Any) -> str:
        return f" {self.word}" * len(tokens)


@dataclass
class Recorded:
    """A recorded tree where a rollout's stands."""

    record: TreeRecord
    chat: Words

    @property
    def grown(self):
        return self

    def text(self, leaf):
        """As `TreeRollout.text`: what the policy and the tools wrote after the prompt."""
        return "".join(self.chat.text(segment.tokens) for segment in self.tree.path(leaf)[1:])

    @property
    def tree(self):
        return self.record.tree

    @property
    def scored(self):
        return self.record.scored

    @property
    def task(self):
        return Task(id=self.record.tree.task, messages=({"role": "user", "content": "a question"},), answers=())


def rollouts(run, word="word", **rewards):
    found = []
    for number, record in enumerate(RunFolder(run).trees(1)):
        values = {leaf: Score(reward=rewards["of"](number, leaf), accuracy=0.0) for leaf in record.scores}
        found.append(Recorded(replace(record, scores=values), Words(word)))
    return found


def test_the_first_of_equal_rewards_is_shown(tiny_run):
    found = rollouts(tiny_run, of=lambda number, leaf: float(number))
    best, worst = best_and_worst(found)
    assert best.startswith(f"the best branch: reward {len(found) - 1}, ") and found[-1].task.id in best
    assert (
        worst.startswith("the worst branch: reward 0, ")
        and f"leaf {'.'.join(map(str, min(found[0].scored.scores)))}" in worst
    )


def test_equal_rewards_show_one_branch_and_no_rewards_none(tiny_run):
    found = rollouts(tiny_run, of=lambda number, leaf: 1.0)
    assert len(best_and_worst(found)) == 1
    for rollout in found:
        rollout.record = replace(rollout.record, scores={})
    assert best_and_worst(found) == [] and best_and_worst([]) == []


def test_long_branches_are_cut_in_their_middle(tiny_run):
    found = rollouts(tiny_run, word="w" * 5000, of=lambda number, leaf: 1.0)
    (text,) = best_and_worst(found)
    assert len(text) < MAX_CHARS + 300 and "…" in text


def test_a_run_prints_them_where_its_recipe_says_so(tiny_project, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    changes = ["train.show_every=2", "evaluation.limit=1", "evaluation.greedy_limit=null"]
    train(load_recipe(tiny_project.recipe, changes), out=tmp_path / "run", console=console)
    said = console.file.getvalue()
    assert said.count("the best branch") + said.count("a branch (all") == 1  # step 2 of 2
    assert "train" in said
