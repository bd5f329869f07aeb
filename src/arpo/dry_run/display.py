"""What a dry run prints: prompt, tree, rewards, loss mask, gates and costs. Words say whatever colours say.

Knows rich and the values that it prints. Refuses to know how they were computed.
"""

from collections.abc import Sequence
from itertools import count

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from arpo.assembly.components import Components
from arpo.chat import ChatFormat
from arpo.core.credit import CreditedTree
from arpo.core.place import Place, show
from arpo.core.tree import Observation, Prompt, RolloutTree, Segment, Turn
from arpo.display.progress import duration
from arpo.display.terminal import Console
from arpo.dry_run.estimate import RunEstimate, Timings
from arpo.learner.packing import pack
from arpo.rollout.collect import Rollout, record_of
from arpo.rollout.task_rollout import TreeRollout
from arpo.tasks import Task
from arpo.tasks.data import LoadReport
from arpo.training.first_step_checks import Gate
from arpo.training.metrics import Metrics
from arpo.view.terminal import print_segments, say
from arpo.view.trees import tree_answer

MAX_CHARS = 240  # of an answer
TRAINED, ALSO_TRAINED, GIVEN = "green", "bright_green", "dim"


def heading(console: Console, text: str) -> None:
    console.print()
    console.rule(Text(text, style="bold"), align="left", style="dim")


def data(console: Console, reports: Sequence[tuple[str, int, LoadReport | None]]) -> None:
    """What each split holds: (name, tasks, what became of its rows)."""
    heading(console, "data")
    for name, number, report in reports:
        say(console, f"{name:11} {report if report else f'{number} tasks'}")


def model(console: Console, components: Components, *, label: str, warning: str = "") -> None:
    heading(console, "model")
    trained = sum(p.numel() for p in components.model.parameters() if p.requires_grad)
    all_of_them = sum(p.numel() for p in components.model.parameters())
    say(console, f"{label}: {all_of_them:,} parameters, {trained:,} of them trained")
    say(console, f"on {components.model.device}, matrix products in {str(components.dtype).removeprefix('torch.')}")
    if warning:
        say(console, warning, "yellow")


def prompt(console: Console, components: Components, task: Task) -> None:
    """The prompt as the model sees it: tokens turned back into text, special ones spelled out."""
    chat, tools = components.agent.chat(task)
    tokens = chat.render(task, tools)
    heading(console, f"the prompt of task {task.id}, as the model sees it")
    console.print(Panel(Text(chat.text(tokens)), subtitle=f"{len(tokens)} tokens", subtitle_align="right"))
    if components.agent.environment is not None:
        say(console, components.agent.environment.note())
    say(console, f"tools: {', '.join(tool.name for tool in tools) or 'none'}. A turn ends with {_stops(chat)}.")
    say(console, f"right answers: {' or '.join(map(repr, task.answers)) or 'none given'}")


def _stops(chat: ChatFormat) -> str:
    return ", ".join([*chat.stop, *(chat.text([token]) for token in chat.stop_tokens)])


# --- the tree


def tree(console: Console, rollout: Rollout, credited: CreditedTree) -> None:
    """Every turn with its head entropy, what the rule decided after each result, and how each leaf ended."""
    grown = rollout.grown
    assert isinstance(grown, TreeRollout)  # what is trained on has tokens
    config = grown.expansion.config
    rule = getattr(config.rule, "rule", config.rule)
    heading(console, f"its tree: {config.leaves} leaves from {grown.planned_roots} roots, rule {rule}")
    print_segments(console, tree_answer(record_of(rollout, credited), grown.chat))
    tips = [d for d in grown.expansion.decisions.values() if d.tip is not None]
    wanted = sum(d.decided.decision.wanted for d in tips)
    say(
        console,
        f"{len(tips)} tips: {wanted} branches wanted, {grown.expansion.num_branches} granted, "
        f"{len(grown.expansion.fills)} further roots to use the budget up",
    )


def _short(text: str) -> str:
    line = text.strip().replace("\n", "⏎")
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1] + "…"


# --- rewards and the loss mask


def rewards(console: Console, rollout: Rollout, credited: CreditedTree) -> None:
    """The parts of each leaf's reward, and the advantage that came of it."""
    heading(console, "the reward, part by part")
    scores = rollout.scored.scores
    parts = sorted({name for score in scores.values() for name in score.parts})
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("leaf", no_wrap=True)
    table.add_column("answered", overflow="fold", min_width=8)
    for name in (*parts, "reward", "accuracy", "advantage"):
        table.add_column(name, justify="right", no_wrap=True)
    for leaf in rollout.grown.tree.leaves():
        ending = rollout.grown.tree.endings[leaf].value.replace("_", " ")
        score = scores.get(leaf)
        if score is None:
            table.add_row(show(leaf), f"({ending})", *("-" for _ in (*parts, 1, 2, 3)))
            continue
        values = [f"{score.parts[name]:.4g}" if name in score.parts else "-" for name in parts]
        answer = rollout.transcripts[leaf].answer
        table.add_row(
            show(leaf),
            Text(
                _short(answer)[:60] if answer is not None else "(no answer)" if ending == "finished" else f"({ending})"
            ),
            *values,
            f"{score.reward:.4g}",
            f"{score.accuracy:.4g}",
            f"{credited.advantages.get(leaf, 0.0):+.2f}",
        )
    console.print(table)
    if not any(credited.advantages.values()):
        say(console, "all rewards are equal: this group would teach nothing", "yellow")


def loss_mask(console: Console, rollout: Rollout, credited: CreditedTree) -> None:
    """One branch token by token, coloured by what the packer lets into the loss."""
    leaf = _longest_leaf(rollout.grown.tree, credited)
    if leaf is None:
        return
    heading(console, f"branch {show(leaf)}: what is trained on")
    trained = trained_tokens(credited, leaf)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("from")
    table.add_column("tokens", overflow="fold")
    table.add_column("trained", justify="right", no_wrap=True)
    at = count()
    assert isinstance(rollout.grown, TreeRollout)  # what is trained on has tokens
    for segment in rollout.grown.tree.path(leaf):
        text, hits = Text(), 0
        for token in segment.tokens:
            on = next(at) in trained
            hits += on
            style = GIVEN if not on else TRAINED if hits % 2 else ALSO_TRAINED
            text.append(rollout.grown.chat.text([token]).replace("\n", "⏎\n"), style=style)
        text.rstrip()
        table.add_row(_author(segment), text, f"{hits} of {len(segment.tokens)}")
    console.print(table)


def _longest_leaf(tree: RolloutTree, credited: CreditedTree) -> Place | None:
    """The leaf of the longest branch that has a reward."""
    return max(sorted(credited.advantages), key=len, default=None) if tree.turns else None


def trained_tokens(credited: CreditedTree, leaf: Place) -> frozenset[int]:
    """Positions in the branch of `leaf` that enter the loss, as the packer decides."""
    credit = {pair: value for pair, value in credited.credit.items() if pair[1] == leaf}
    [batch] = pack([CreditedTree(credited.scored, {leaf: credited.advantages[leaf]}, credit)], 1, flat=True)
    return frozenset(batch.predicts_P.tolist())


def _author(segment: Segment) -> str:
    match segment:
        case Prompt():
            return "prompt"
        case Turn():
            return "policy"
        case Observation():
            return "tools"


# --- the step and its costs


def first_step(
    console: Console, metrics: Metrics, gates: Sequence[Gate], num_trees: int, *, enforced: bool, cold_started: bool
) -> None:
    """The gates as far as these trees can measure them; not for a model before its cold start."""
    of = f"{num_trees} tree{'s' if num_trees > 1 else ''}"
    if cold_started:
        heading(console, f"gates, measured on {of}" + ("" if enforced else " (this recipe only reports them)"))
    else:
        heading(console, f"{of} by the model as it is")
        say(
            console,
            "The gates are checked in the first step, after the cold start. `arpo sft` makes that alone; then "
            "--try shows them.",
        )
    for gate in gates if cold_started else ():
        say(console, str(gate), "green" if gate.holds else "yellow")
    say(
        console,
        f"accuracy {metrics.get('accuracy/leaves', float('nan')):.0%}, {metrics['calls/a_leaf']:.1f} tool calls and "
        f"{metrics['tokens/generated'] / max(1, metrics['leaves/all']):.0f} new tokens a leaf",
    )


def cost(console: Console, timings: Timings, expected: RunEstimate) -> None:
    heading(console, "memory and time")
    together = f"{timings.trees_at_once} at once" if timings.trees_at_once > 1 else "alone: many at once will be faster"
    say(console, f"a tree       {timings.tree_s:.2g} s ({together})")
    pretended = ", on pretended rewards since no group had mixed ones" if timings.made_up else ""
    saved = f" instead of {timings.tokens_flat:,}" if timings.tokens_flat > timings.tokens_trained else ""
    say(console, f"an update    {timings.update_s:.2g} s for {timings.tokens_trained:,} tokens{saved}{pretended}")
    say(console, f"memory       {timings.memory / 2**30:.1f} GiB at the peak")
    say(console, f"a step       about {duration(expected.step_s)} where every group has mixed rewards")
    say(console, f"training     about {duration(expected.training_s)} for {expected.num_steps} steps")
    if expected.cold_start_s:
        say(console, f"cold start   about {duration(expected.cold_start_s)}, once")
    if expected.evaluations_s:
        say(console, f"evaluations  about {duration(expected.evaluations_s)} in all")
    if expected.minutes is not None:
        fits = expected.steps_that_fit
        limit = f"train.minutes is {expected.minutes:g}: "
        enough = fits >= expected.num_steps
        say(
            console,
            limit + ("all steps fit" if enough else f"about {fits} of {expected.num_steps} steps fit"),
            "" if enough else "yellow",
        )
    say(console, "\nNothing was written. Without --try the run begins.")
