"""The best and the worst branch of a step as text, for somebody who watches a run (`train.show_every`).

Knows rewards and texts. Refuses to know when and where they are shown.
"""

from collections.abc import Sequence

from arpo.core.place import Place, show
from arpo.rollout.collect import Rollout

MOST_CHARS = 1_200  # of a branch


def best_and_worst(batch: Sequence[Rollout]) -> list[str]:
    """Two texts, each with what it is in its first line: of equal rewards the first branch in the step. One text where all
    rewards are equal, none where no branch has one."""
    found = [(score.reward, rollout, leaf) for rollout in batch for leaf, score in sorted(rollout.scored.scores.items())]
    if not found:
        return []
    best, worst = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
    if best[0] == worst[0]:
        return [_text("a branch (all have the same reward)", *best)]
    return [_text("the best branch", *best), _text("the worst branch", *worst)]


def _text(name: str, reward: float, rollout: Rollout, leaf: Place) -> str:
    grown = rollout.grown
    written = grown.text(leaf).strip()
    if len(written) > MOST_CHARS:
        written = f"{written[: MOST_CHARS // 2]} … {written[-MOST_CHARS // 2 :]}"
    ending = grown.tree.endings[leaf].value.replace("_", " ")
    lines = [f"{name}: reward {reward:g}, {ending}, {rollout.task.id}, leaf {show(leaf)}", rollout.task.question, written]
    return "\n  ".join(line for text in lines for line in text.splitlines() if line.strip())
