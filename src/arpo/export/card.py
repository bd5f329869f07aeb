"""Writes the model card of an exported model: its base model, its recipe and its results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arpo
from arpo.chat.config import ChatConfig
from arpo.display.tables import markdown_table
from arpo.evaluation.results import EvalResults
from arpo.evaluation.statistics import Estimate
from arpo.files import expanded
from arpo.recipe.run import RunConfig, plain
from arpo.tools import Tool
from arpo.tools.config import ToolConfig
from arpo.yaml_positions import dump


def model_card(run: RunConfig, *, step: int, name: str, results: str) -> str:
    """The card in Markdown with the Hub's front matter. `step` 0 is a cold start without reinforcement learning.
    `results` is a table from one of the functions below, or empty."""
    parts = [
        _front_matter(run.model.source),
        f"# {name.rpartition('/')[2]}",
        _what(run, step),
        results and f"## Results\n\n{results}",
        _use(run, name),
        f"## Recipe\n\n```yaml\n{dump(_portable(plain(run)))}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_of_run(summary: Mapping[str, Any], step: int) -> str:
    """Results before and after training, from a run's summary.json. `step` is the step of the exported model."""
    rows = []
    for label, key in (("sampled", "accuracy"), ("greedy", "greedy")):
        found = [summary.get(f"{key}_{when}") for when in ("before", "after", "gain")]
        if any(found):
            asked = next(value["n"] for value in found if value)
            rows.append([label, *(Estimate.from_json(value).percent if value else "-" for value in found), str(asked)])
    last = summary.get("steps", step)
    of = "this model" if step == last else f"the run's last step ({last}), not of this checkpoint (step {step})"
    return _table(["answers", "before", "after", "paired difference", "questions"], rows, f"`after` is that of {of}.")


def table_of_results(results: Sequence[EvalResults]) -> str:
    """What was measured on this very model."""
    rows = [[each.sampling, each.accuracy.percent, str(len(each.by_question))] for each in results]
    return _table(["answers", "accuracy", "questions"], rows, "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    if not rows:
        return ""
    return f"Accuracy on held-out tasks, 95 % intervals. {note}".rstrip() + "\n\n" + markdown_table(head, rows)


def _front_matter(source: str) -> str:
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [arpo, reinforcement-learning, tool-use]",
    ]
    if _on_hub(source):
        lines.append(f"base_model: {source.partition('@')[0]}")
    return "\n".join([*lines, "---"])


def _on_hub(source: str) -> bool:
    return not source.startswith("pypi:") and source.count("/") == 1 and not expanded(source).exists()


def _base(source: str) -> str:
    """The source for other readers: only the last part of a local path."""
    return source if source.startswith("pypi:") or _on_hub(source) else Path(source).name


def _what(run: RunConfig, step: int) -> str:
    how = f"{step} steps of reinforcement learning (ARPO, arXiv 2507.19849)" if step else "a supervised cold start"
    before = ", after a supervised cold start on traces" if run.cold_start and step else ""
    tools = ", ".join(f"`{tool}`" for tool in _tools(run)) or "no tools"
    return (
        f"A tool-using agent trained from `{_base(run.model.source)}` by {how}{before}, with arpo "
        f"{arpo.__version__}. Weights are float32{', the LoRA adapters merged into them' if run.model.lora else ''}.\n"
        "\n"
        f"- tasks: {_base(str(run.data.train.source))}\n- tools: {tools}\n- seed: {run.seed}"
    )


def _tools(run: RunConfig) -> list[str]:
    return [
        str(tool.name or tool.use)
        if isinstance(tool, ToolConfig)
        else tool.name
        if isinstance(tool, Tool)
        else repr(tool)
        for tool in run.tools.offered
    ]


def _use(run: RunConfig, name: str) -> str:
    form = run.chat.format if isinstance(run.chat, ChatConfig) else type(run.chat).__name__
    protocol = (
        "It writes `<think>`, calls tools by their tags, and ends with `<answer>`."
        if form == "tags"
        else "It calls tools as its chat template says."
    )
    return (
        f"## Use\n\n{protocol}\n\n    arpo chat {name} --recipe RECIPE    # an export on disk has its own\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```'
    )


def _portable(value: Any) -> Any:
    """A resolved recipe in which paths of this machine are reduced to their last parts."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items() if key not in ("code", "out")}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
