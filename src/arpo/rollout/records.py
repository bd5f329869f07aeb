"""The record of a rollout: what a reader needs to see, replay and train a tree again."""

from array import array
from collections.abc import Mapping

from arpo.core.credit import CreditedTree
from arpo.core.place import Place, show
from arpo.core.record import TreeRecord
from arpo.rollout.collect import Rollout


def record_of(
    rollout: Rollout, credited: CreditedTree | None = None, learner: "Mapping[Place, array[float]] | None" = None
) -> TreeRecord:
    """The rollout's tree with its scores (and credit, once there is one), task and texts. `learner`: the log-probabilities
    of trained turns' tokens by the learner's weights at the start of the step."""
    task, grown = rollout.task, rollout.grown
    notes = {
        "task": {
            "id": task.id,
            "source": task.source,
            "question": task.question,
            "answers": list(task.answers),
            "family": str(task.metadata.get("family", "")),
            **({"calls": calls} if (calls := task.metadata.get("calls")) else {}),
        },
        "texts": {show(place): grown.turn_text(place) for place in grown.tree.turns},
        "prompt": grown.prompt_text(),
        "answers": {show(leaf): said.answer for leaf, said in rollout.transcripts.items()},
        "failures": [*(f"{show(place)}: {reason}" for place, reason in grown.failures), *grown.states.lost],
        "discarded": {show(leaf): [outcome.tool for outcome in made] for leaf, made in grown.discarded.items()},
        "tool_s": grown.tool_s,
        "learner_logprobs": {show(place): values for place, values in (learner or {}).items()},
    }
    return TreeRecord.of(grown.expansion, credited or rollout.scored, notes)
