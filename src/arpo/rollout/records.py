"""The record of a rollout: what a reader needs to see, replay and train a tree again."""

from arpo.core.credit import CreditedTree
from arpo.core.place import show
from arpo.core.record import TreeRecord
from arpo.rollout.collect import Rollout


def record_of(rollout: Rollout, credited: CreditedTree | None = None) -> TreeRecord:
    """The rollout's tree with its scores (and credit, once there is one), task and texts."""
    task, chat = rollout.task, rollout.grown.chat
    notes = {
        "task": {
            "id": task.id,
            "source": task.source,
            "question": task.question,
            "answers": list(task.answers),
            "family": str(task.metadata.get("family", "")),
        },
        "texts": {show(segment.place): chat.text(segment.tokens) for segment in rollout.grown.tree.turns.values()},
        "prompt": chat.text(rollout.grown.tree.prompt.tokens),
        "answers": {show(leaf): said.answer for leaf, said in rollout.transcripts.items()},
        "tool_s": rollout.grown.tool_s,
    }
    return TreeRecord.of(rollout.grown.expansion, credited or rollout.scored, notes)
