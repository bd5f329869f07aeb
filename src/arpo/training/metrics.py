"""A step's metrics, a flat dict of numbers: pure functions of its trees.

Knows trees, scores, credit and decisions. Refuses to know models, files and time. Names are `group/name`; a metric that
cannot be computed (no decision, say) is left out, never 0.

    reward/{leaves,probe_lines,fork_weighted,std}, accuracy/{leaves,probe_lines,fork_weighted}
        `probe_lines` are plain policy samples: the series to compare between methods. `fork_weighted` weighs a leaf by
        the product of 1 / number of children on its path (biased: children are not forked at random).
    rates/{format,tool_use,mixed_groups}, parts/NAME (means of the reward's parts)
        `format`: the reward's part of that name; of a reward without one, branches that finished with every turn well
        formed.
    calls/{asked,answered,executed,cached,shared,discarded,inherited,a_leaf,retried,cost}
        `answered`: executed, from the cache, or shared with an equal call under way; the rest was refused. `discarded`:
        answered ones that the model never saw (too long for the branch, or a neighbour's provider was down).
        `inherited`: answered calls on trunks, counted again for each leaf beyond the first: what sharing saved.
        `retried`: further attempts where a provider failed. `cost`: money, as tools say.
    faults/KIND (raised_TypeError, told, reported, deadline), tools/seconds/TOOL/{p50,p95,p99} (of executed calls)
    outcomes/STATUS, endings/ENDING, leaves/{all,scored,lost,fills,siblings}, groups/all           (counts)
    tokens/{generated,shared,trained_unique,trained_flat,observed,forward_unique,forward_flat}
        `generated`: sampled; `shared`: sampled tokens that leaves beyond the first did not have to sample again.
    lengths/{prompt,turn,branch,branch_max,turns}                                          (tokens; turns a branch)
    entropy/{first,after_tool,rise,rise_positive}; entropy_at/{first,after_tool}/NN        (nats; NN: place in the turn)
        over planned roots' first turns and what follows them without a branch (`on_probe_line`): a sibling starts where
        the policy was unsure, so it would bias them.
    environment/{episodes,forked,replayed,replayed_turns}                                  (counts)
        episodes that were begun, copied for a branch, or made again for one by repeating its trunk's turns
    decisions/{tips,wanted,granted,refused,flips,waited}, decisions/{tips_at,wanting_at}/DEPTH
    staleness/{mean,max,mixed}
        versions of the weights between those that wrote a token and those that train it, over all sampled tokens (0:
        on-policy); `mixed`: the share of turns that more than one version wrote.
    advantage/abs
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, fsum

from arpo.core.credit import CreditedTree, mixed
from arpo.core.entropy import head_entropy
from arpo.core.expansion import TipDecision
from arpo.core.place import Place
from arpo.core.tree import Role, RolloutTree, StopReason, ToolCallResult, Turn, fork_weights, on_probe_line, probe_lines
from arpo.rollout.collect import Rollout

Metrics = dict[str, float]
POSITIONS = 20  # of a turn, whose mean entropy is reported one by one


@dataclass(frozen=True, slots=True)
class TreeStats:
    """One tree of a step, with its planned number of roots, its final decisions by tip place (`Expansion.decisions`)
    and, by leaf, the outcomes that the model never saw (`Grown.discarded`) and whether it finished with every turn well
    formed."""

    credited: CreditedTree
    planned_roots: int
    decisions: Mapping[Place, TipDecision] = field(default_factory=dict)
    discarded: Mapping[Place, Sequence[ToolCallResult]] = field(default_factory=dict)
    well_formed: Mapping[Place, bool] = field(default_factory=dict)
    episodes: Mapping[str, int] = field(default_factory=dict)
    """Of an environment: episodes that were begun, copied for a branch, or repeated for one."""

    @classmethod
    def from_rollout(cls, rollout: Rollout, credited: CreditedTree) -> "TreeStats":
        grown = rollout.grown
        well_formed = {
            leaf: transcript.ending == StopReason.FINISHED.value and all(turn.well_formed for turn in transcript.turns)
            for leaf, transcript in rollout.transcripts.items()
        }
        episodes = {} if grown.states.episodes is None else grown.states.episodes.count
        return cls(credited, grown.planned_roots, grown.expansion.decisions, grown.discarded, well_formed, episodes)


def step_metrics(step: Sequence[TreeStats], *, head_tokens: int = POSITIONS, version: int | None = None) -> Metrics:
    """All figures of a step. `head_tokens` is the recipe's k, `version` that of the weights which are to be trained on
    it (None: not known, so there is no staleness). Raises ValueError for a step without trees."""
    if not step:
        raise ValueError("a step without trees has nothing to measure")
    trees = [m.credited.tree for m in step]
    return {
        **_rewards(step),
        **_rates(step),
        **_calls(step),
        **_ends(step),
        **_tokens(step),
        **_entropies(trees, head_tokens),
        **_decisions(step),
        **{f"environment/{name}": count for name, count in sum((Counter(m.episodes) for m in step), Counter()).items()},
        **({} if version is None else _staleness(trees, version)),
    }


def mean(values: Sequence[float]) -> float:
    """Raises ZeroDivisionError where there is nothing to average: callers leave such a figure out."""
    return fsum(values) / len(values)


def _rewards(step: Sequence[TreeStats]) -> Metrics:
    samples: dict[str, list[float]] = {}
    for m in step:
        tree, scores = m.credited.tree, m.credited.scored.scores
        leaves = [leaf for leaf in tree.leaves() if leaf in scores]
        lines = [leaf for leaf in probe_lines(tree, m.planned_roots) if leaf in scores]
        weights = fork_weights(tree, leaves)
        for name in ("reward", "accuracy"):
            values = {leaf: float(getattr(scores[leaf], name)) for leaf in leaves}
            samples.setdefault(f"{name}/leaves", []).extend(values.values())
            samples.setdefault(f"{name}/probe_lines", []).extend(values[leaf] for leaf in lines)
            if leaves:
                weighted = fsum(weights[leaf] * value for leaf, value in values.items())
                samples.setdefault(f"{name}/fork_weighted", []).append(weighted)
    result = {name: mean(values) for name, values in samples.items() if values}
    if rewards := samples.get("reward/leaves"):
        centre = mean(rewards)
        result["reward/std"] = mean([(r - centre) ** 2 for r in rewards]) ** 0.5
    parts: dict[str, list[float]] = {}
    for m in step:
        for score in m.credited.scored.scores.values():
            for name, value in score.parts.items():
                parts.setdefault(f"parts/{name}", []).append(float(value))
    advantages = [abs(a) for m in step for a in m.credited.advantages.values()]
    return {
        **result,
        **{k: mean(v) for k, v in sorted(parts.items())},
        **({"advantage/abs": mean(advantages)} if advantages else {}),
    }


def _rates(step: Sequence[TreeStats]) -> Metrics:
    formats: list[float] = []
    used: list[float] = []
    teaching: list[float] = []
    for m in step:
        scores = m.credited.scored.scores
        judged = {leaf: score.parts["format"] for leaf, score in scores.items() if "format" in score.parts}
        formats += [float(right) for leaf, right in {**m.well_formed, **judged}.items() if leaf in scores]
        used += [float(any(outcome.answered for outcome in _outcomes(m, leaf))) for leaf in scores]
        if len(scores) > 1:
            teaching.append(float(mixed(m.credited.scored)))
    result: Metrics = {}
    if formats:
        result["rates/format"] = mean(formats)
    if used:
        result["rates/tool_use"] = mean(used)
    if teaching:
        result["rates/mixed_groups"] = mean(teaching)
    return result


def _outcomes(m: TreeStats, leaf: Place) -> list[ToolCallResult]:
    """Of all calls on the way to `leaf`."""
    observations = m.credited.tree.observations
    places = [leaf[:depth] for depth in range(1, len(leaf)) if leaf[:depth] in observations]
    return [*(outcome for place in places for outcome in observations[place].outcomes), *m.discarded.get(leaf, ())]


def _leaves_below(tree: RolloutTree) -> Counter[Place]:
    """How many leaves lie at or below each turn."""
    return Counter(leaf[:depth] for leaf in tree.endings for depth in range(1, len(leaf) + 1))


def _calls(step: Sequence[TreeStats]) -> Metrics:
    asked = mended = answered = discarded = inherited = leaves = 0
    made: list[ToolCallResult] = []
    for m in step:
        tree = m.credited.tree
        below = _leaves_below(tree)
        leaves += len(tree.endings)
        asked += sum(len(turn.calls) for turn in tree.turns.values())
        mended += sum(bool(call.mended) for turn in tree.turns.values() for call in turn.calls)
        shown = {place: observation.outcomes for place, observation in tree.observations.items()}
        for place, outcomes in {**shown, **m.discarded}.items():
            here = sum(o.answered for o in outcomes)
            answered += here
            discarded += here * (place in m.discarded)
            inherited += here * max(below[place] - 1, 0)
            made += outcomes
    by_status = Counter(outcome.status.value for outcome in made)
    faults = Counter(outcome.fault.replace(" ", "_") for outcome in made if outcome.fault)
    return {
        "calls/asked": asked,
        "calls/mended": mended,
        "calls/answered": answered,
        "calls/executed": sum(outcome.ran for outcome in made),
        "calls/cached": sum(outcome.cached and outcome.answered for outcome in made),
        "calls/shared": sum(outcome.shared and outcome.answered for outcome in made),
        "calls/discarded": discarded,
        "calls/inherited": inherited,
        "calls/a_leaf": (answered + inherited) / leaves if leaves else 0.0,
        "calls/retried": sum(outcome.attempts - 1 for outcome in made),
        "calls/cost": fsum(outcome.cost for outcome in made),
        **{f"faults/{kind}": count for kind, count in sorted(faults.items())},
        **{f"outcomes/{status}": count for status, count in sorted(by_status.items())},
        **_latencies(made),
    }


def _latencies(made: Sequence[ToolCallResult]) -> Metrics:
    """Percentiles by tool: the smallest time that so many of its executed calls took at most."""
    by_tool: dict[str, list[float]] = {}
    for outcome in made:
        if outcome.ran:
            by_tool.setdefault(outcome.tool, []).append(outcome.seconds)
    return {
        f"tools/seconds/{tool}/p{share}": sorted(seconds)[ceil(share / 100 * len(seconds)) - 1]
        for tool, seconds in sorted(by_tool.items())
        for share in (50, 95, 99)
    }


def _ends(step: Sequence[TreeStats]) -> Metrics:
    trees = [m.credited.tree for m in step]
    endings = Counter(ending for tree in trees for ending in tree.endings.values())
    return {
        "groups/all": len(trees),
        "leaves/all": sum(endings.values()),
        "leaves/scored": sum(len(m.credited.scored.scores) for m in step),
        "leaves/lost": sum(count for ending, count in endings.items() if ending.aborted),
        "leaves/fills": sum(turn.role is Role.FILL for tree in trees for turn in tree.turns.values()),
        "leaves/siblings": sum(turn.role is Role.SIBLING for tree in trees for turn in tree.turns.values()),
        **{f"endings/{ending.value}": endings[ending] for ending in StopReason if endings[ending]},
    }


def _tokens(step: Sequence[TreeStats]) -> Metrics:
    count: Counter[str] = Counter()
    turn_lengths: list[int] = []
    branch_lengths: list[int] = []
    num_turns: list[int] = []
    for m in step:
        tree = m.credited.tree
        below = _leaves_below(tree)
        written = {place: len(turn.tokens) for place, turn in tree.turns.items()}
        seen = {place: len(observation.tokens) for place, observation in tree.observations.items()}
        count["tokens/generated"] += sum(written.values())
        count["tokens/observed"] += sum(seen.values())
        count["tokens/shared"] += sum(n * max(below[place] - 1, 0) for place, n in written.items())
        trained = {turn for turn, _ in m.credited.credit}
        count["tokens/trained_unique"] += sum(written[turn] for turn in trained)
        count["tokens/trained_flat"] += sum(written[turn] for turn, _ in m.credited.credit)
        credited = {leaf for _, leaf in m.credited.credit}
        shown = {leaf[:depth] for leaf in credited for depth in range(1, len(leaf))}
        prompt = len(tree.prompt.tokens)
        if credited:
            observed = sum(seen[place] for place in shown)
            count["tokens/forward_unique"] += prompt + observed + sum(written[turn] for turn in trained)
            flat = sum(seen[leaf[:depth]] for leaf in credited for depth in range(1, len(leaf)))
            count["tokens/forward_flat"] += (
                prompt * len(credited) + flat + sum(written[turn] for turn, _ in m.credited.credit)
            )
        turn_lengths += written.values()
        for leaf in tree.leaves():
            segments = tree.path(leaf)
            branch_lengths.append(sum(len(s.tokens) for s in segments[1:]))
            num_turns.append(sum(isinstance(s, Turn) for s in segments))
    lengths: Metrics = {"lengths/prompt": mean([len(m.credited.tree.prompt.tokens) for m in step])}
    trees = [m.credited.tree for m in step]
    opened = [len(o.tokens) for tree in trees for o in tree.observations.values() if o.new_context]
    if opened:
        lengths["contexts/a_leaf"] = mean([len(tree.contexts(leaf)) for tree in trees for leaf in tree.leaves()])
        lengths["contexts/opened_tokens"] = mean(opened)
    if turn_lengths:
        lengths["lengths/turn"] = mean(turn_lengths)
    if branch_lengths:
        lengths |= {
            "lengths/branch": mean(branch_lengths),
            "lengths/branch_max": max(branch_lengths),
            "lengths/turns": mean(num_turns),
        }
    return {**{name: count[name] for name in sorted(count)}, **lengths}


def _entropies(trees: Sequence[RolloutTree], head_tokens: int) -> Metrics:
    first: list[list[float]] = [[] for _ in range(POSITIONS)]
    after: list[list[float]] = [[] for _ in range(POSITIONS)]
    first_heads: list[float] = []
    after_heads: list[float] = []
    rises: list[float] = []
    for tree in trees:
        heads = {
            place: head_entropy(turn.entropies, head_tokens) for place, turn in tree.turns.items() if len(turn.tokens)
        }
        for place, head in heads.items():
            turn = tree.turns[place]
            if not on_probe_line(tree, place):
                continue
            for position, entropy in enumerate(turn.entropies[:POSITIONS]):
                (first if len(place) == 1 else after)[position].append(entropy)
            (first_heads if len(place) == 1 else after_heads).append(head)
            if len(place) > 1 and place[:1] in heads:
                rises.append(head - heads[place[:1]])
    result: Metrics = {}
    if first_heads:
        result["entropy/first"] = mean(first_heads)
    if after_heads:
        result["entropy/after_tool"] = mean(after_heads)
    if rises:
        result["entropy/rise"] = mean(rises)
        result["entropy/rise_positive"] = mean([float(rise > 0) for rise in rises])
    for name, positions in (("first", first), ("after_tool", after)):
        result |= {f"entropy_at/{name}/{i:02d}": mean(values) for i, values in enumerate(positions) if values}
    return result


def _staleness(trees: Sequence[RolloutTree], version: int) -> Metrics:
    turns = [turn for tree in trees for turn in tree.turns.values() if turn.versions]
    tokens: Counter[int] = Counter()
    for turn in turns:
        for wrote, count in turn.versions:
            tokens[version - wrote] += count
    if not tokens:
        return {}
    return {
        "staleness/mean": sum(lag * count for lag, count in tokens.items()) / tokens.total(),
        "staleness/max": max(tokens),
        "staleness/mixed": mean([float(len(turn.versions) > 1) for turn in turns]),
    }


def _decisions(step: Sequence[TreeStats]) -> Metrics:
    """Over tips that were decided on; those whose probe failed before its head was known have no tip and are left
    out."""
    tips = [(d.tip, d.decided) for m in step for d in m.decisions.values() if d.tip is not None]
    if not tips:
        return {}
    wanted, granted = sum(d.decision.wanted for _, d in tips), sum(d.granted for _, d in tips)
    tips_at = Counter(tip.depth for tip, _ in tips)
    wanting_at = Counter(tip.depth for tip, d in tips if d.decision.wanted > 0)
    return {
        "decisions/tips": len(tips),
        "decisions/wanted": wanted,
        "decisions/granted": granted,
        "decisions/refused": sum(max(d.decision.wanted - d.granted, 0) for _, d in tips),
        "decisions/flips": mean([float(d.decision.flips) for _, d in tips]),
        "decisions/waited": mean([float(d.waited) for _, d in tips]),
        **{f"decisions/tips_at/{depth}": tips_at[depth] for depth in sorted(tips_at)},
        **{f"decisions/wanting_at/{depth}": wanting_at[depth] for depth in sorted(tips_at)},
    }


def want_rates(history: Sequence[Mapping[str, float | None]]) -> dict[int, float]:
    """The share of tips at each depth where a rule wanted a branch, over a whole run: what the `random` rule takes as
    its p_d."""
    tips: Counter[int] = Counter()
    wanting: Counter[int] = Counter()
    for metrics in history:
        for name, value in metrics.items():
            if name.startswith("decisions/tips_at/"):
                tips[int(name.rpartition("/")[2])] += int(value or 0)
            elif name.startswith("decisions/wanting_at/"):
                wanting[int(name.rpartition("/")[2])] += int(value or 0)
    return {depth: wanting[depth] / tips[depth] for depth in sorted(tips) if tips[depth]}
