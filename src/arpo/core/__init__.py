"""The ARPO method: tree, entropy, branching, expansion, credit and record. Standard library only; no I/O, no clock.

Expansion: events -> commands -> RolloutTree      (expansion, budget, branching, entropy)
ScoredTree -> CreditedTree                        (credit)
TreeRecord <-> bytes -> replay                    (record, codec)

Import the function `credit` from `arpo.core.credit`: exported here, it would shadow its module.
"""

from arpo.core.branching import (
    Aepo,
    BranchRule,
    Chance,
    Decision,
    Fixed,
    Never,
    Paper,
    Rank,
    Released,
    Rule,
    StepStats,
    Threshold,
    Tip,
)
from arpo.core.credit import AdvantageConfig, CreditedTree, ScoredTree, attribute, mixed
from arpo.core.entropy import bounds_from_top_k, entropy_of_logits, entropy_of_probabilities, head_entropy
from arpo.core.events import Command, Decided, Event, Failed, HeadKnown, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.expansion import Expansion, ExpansionConfig, TipDecision
from arpo.core.place import Place, Step, keyed, read_place, show
from arpo.core.record import Frames, TreeRecord, decode, encode, replay
from arpo.core.roots import Constant, Pilot
from arpo.core.score import Score
from arpo.core.tree import (
    Branch,
    Call,
    CallStatus,
    FinishReason,
    Observation,
    Prompt,
    Role,
    RolloutTree,
    Segment,
    StopReason,
    ToolCallResult,
    Turn,
    fork_weights,
    on_probe_line,
    probe_lines,
)
from arpo.core.window import next_stats, post_tool_heads

__all__ = [
    "AdvantageConfig",
    "Aepo",
    "Branch",
    "BranchRule",
    "Call",
    "CallStatus",
    "Chance",
    "Command",
    "Constant",
    "CreditedTree",
    "Decided",
    "Decision",
    "Event",
    "Expansion",
    "ExpansionConfig",
    "Failed",
    "FinishReason",
    "Fixed",
    "Frames",
    "HeadKnown",
    "Never",
    "Observation",
    "Paper",
    "Pilot",
    "Place",
    "Prompt",
    "Rank",
    "Released",
    "Returned",
    "Role",
    "RolloutTree",
    "Rule",
    "RunCalls",
    "SampleTurn",
    "Score",
    "ScoredTree",
    "Segment",
    "Step",
    "StepStats",
    "StopReason",
    "Threshold",
    "Tip",
    "TipDecision",
    "ToolCallResult",
    "TreeRecord",
    "Turn",
    "TurnEnded",
    "attribute",
    "bounds_from_top_k",
    "decode",
    "encode",
    "entropy_of_logits",
    "entropy_of_probabilities",
    "fork_weights",
    "head_entropy",
    "keyed",
    "mixed",
    "next_stats",
    "on_probe_line",
    "post_tool_heads",
    "probe_lines",
    "read_place",
    "replay",
    "show",
]
