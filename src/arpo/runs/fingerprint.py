"""What a run's results depend on, so that a resumed run knows whether it goes on with the same.

    RUN/fingerprints.json    {"parts": {part: {label: value}}, "accepted": [{time, accepted, differences}]}

    part                          what is compared                                        key that accepts it
    data                          every row of train, validation and test, with its id    data.SPLIT
    model, tokenizer, template    the base model by content                               model.source
    tools                         settings, offers, documents, code                       tools
    reward                        settings, code                                          reward
    rule, surrogate               code of your own                                        rollout.rule, loss.surrogate
    credit                        code of your own estimator and mask                     advantage
    method                        the recipe's keys that decide results                   the key

Code is compared by its syntax tree (`code`). Engine, plan, trackers and how long a run lasts are no part of it: they
may change. Knows configurations and tasks. Refuses to know what a resumed run does.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from arpo.config import Config
from arpo.errors import ConfigError, FormatError, nearest
from arpo.files import expanded, read_json, write_json
from arpo.foreign import check_values
from arpo.models.identity import identity_parts
from arpo.recipe.run import RunConfig, plain
from arpo.runs.code import code_of
from arpo.runs.folder import STATES, RunFolder
from arpo.tasks import Task
from arpo.tools import ToolBase

FILE = "fingerprints.json"
PARTS = ("data", "model", "tokenizer", "template", "tools", "reward", "rule", "surrogate", "credit", "method")
SECTIONS = ("seed", "model", "chat", "rollout", "advantage", "loss", "optim", "train", "cold_start", "evaluation")
FREE = (  # keys of these sections that may change; `model.source` is compared by content
    *(f"model.{key}" for key in ("source", "device", "gradient_checkpointing")),
    *(f"evaluation.{key}" for key in ("judge", "k")),
)
OF_TRAINING = ("tasks_per_step", "updates_per_step", "max_staleness", "dynamic_sampling")  # the rest of `train` is free
PLANNED = ("cold_start", "evaluation.limit", "evaluation.greedy_limit")  # upper bounds where `plan` is `auto`
EDGE = 1 << 20  # bytes read at both ends of a file of documents

Parts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    part: str
    key: str
    """Of the recipe: giving it on the command line accepts the difference."""
    text: str

    def is_accepted(self, accepted: Iterable[str]) -> bool:
        """Whether one of `accepted` names the part, its key, or a key above or below it."""
        return any(
            name in (self.part, self.key) or self.key.startswith(f"{name}.") or name.startswith(f"{self.key}.")
            for name in accepted
        )


def fingerprint(
    run: RunConfig, tasks: Mapping[str, Sequence[Task]], tools: Sequence[ToolBase], source: Path
) -> dict[str, dict[str, Any]]:
    """The parts of a run's fingerprint. `source`: the folder of its base model."""
    named = plain(run)
    offered = [without_limits(tool) for tool in named["tools"]["offered"]]
    parts: dict[str, dict[str, Any]] = {
        "data": {f"data.{split}": [[task.id, _row(task)] for task in rows] for split, rows in tasks.items() if rows},
        **{name: {"content": value} for name, value in identity_parts(source).items()},
        "tools": {
            "settings": _digest(offered),
            **{f"offer of {tool.name}": _digest([tool.description, tool.schema]) for tool in tools},
            **{f"documents {path}": _content(expanded(path)) for path in _documents(offered)},
            **_code(offered),
        },
        "reward": {"settings": _digest(named["reward"]), **_code(named["reward"])},
        "rule": _code(named["rollout"]["rule"]),
        "surrogate": _code(named["loss"]["surrogate"]),
        "credit": _code(named["advantage"]),
        "method": _method(run),
    }
    return dict(json.loads(json.dumps(parts, default=str)))


def check_resumption(folder: Path, now: Parts, accepted: Sequence[str]) -> list[Difference]:
    """What the run in `folder` no longer has as it had, all of it accepted. Empty before its first step is finished:
    until then nothing depends on it.

    Raises ConfigError for differences that `accepted` (parts or keys) does not name, and for names of neither.
    """
    for name in accepted:
        if name not in PARTS and name.partition(".")[0] not in RunConfig.model_fields:
            hint = f"One of {', '.join(PARTS)}, or a key of the recipe; {nearest(name, PARTS)}"
            raise ConfigError("is no part of a run that can be accepted", where="--accept", value=name, hint=hint)
    begun = (folder / STATES).is_file() or any((folder / "checkpoints").glob("step-*"))
    if not (folder / FILE).is_file() or not begun:
        return []
    changed = differences(_kept(folder)["parts"], now)
    if refused := [each for each in changed if not each.is_accepted(accepted)]:
        parts = ",".join(dict.fromkeys(each.part for each in refused))
        raise ConfigError(
            f"what this run's results depend on has changed since it was started: {'; '.join(e.text for e in refused)}",
            where=str(folder),
            hint=f"Restore it, or go on with what there is now: --accept {parts} (in Python: accept=)",
        )
    return changed


def keep_fingerprint(
    folder: RunFolder, parts: Parts, accepted: Sequence[str] = (), changed: Sequence[Difference] = ()
) -> None:
    """Write `parts` as what a run has, and what was accepted to come here, which its notes say too."""
    path = folder.path / FILE
    history = _kept(folder.path)["accepted"] if path.is_file() else []
    if changed:
        texts = [each.text for each in changed]
        history = [*history, {"time": time.time(), "accepted": list(accepted), "differences": texts}]
        folder.note(f"resumed with changes that were accepted: {'; '.join(texts)}", level="warning")
    write_json(path, {"parts": parts, "accepted": history})


def _kept(folder: Path) -> dict[str, Any]:
    kept = read_json(folder / FILE)
    kinds = {"parts": Mapping[str, Mapping[str, Any]], "accepted": list[Any]}
    if not isinstance(kept, dict) or kept.keys() != kinds.keys():
        raise FormatError(f"{folder / FILE} does not hold {' and '.join(kinds)}")
    check_values(kept, kinds, str(folder / FILE))
    data = kept["parts"].get("data", {})
    check_values(data, dict.fromkeys(data, list[list[str]]), f"{folder / FILE}: data")
    if any(len(row) != 2 for rows in data.values() for row in rows):
        raise FormatError(f"{folder / FILE}: data: a row is not of an id and a digest")
    return kept


def differences(before: Parts, now: Parts) -> list[Difference]:
    """What differs, a line each. Keys of the recipe that only one side knows are those of another version of arpo."""
    found = []
    for part in PARTS:
        one, other = before.get(part, {}), now.get(part, {})
        for label in dict.fromkeys([*one, *other]):
            if part == "method":
                found += _changed_key(label, one, other)
            elif one.get(label) != other.get(label):
                found.append(_changed(part, label, one.get(label), other.get(label)))
    return found


def _changed(part: str, label: str, one: Any, other: Any) -> Difference:
    if part == "data":
        return Difference(part, label, f"{label}: {_rows(one or [], other or [])}")
    keys = {
        "tools": "tools",
        "reward": "reward",
        "rule": "rollout.rule",
        "surrogate": "loss.surrogate",
        "credit": "advantage",
    }
    key = keys.get(part, "model.source")
    verb = "is new" if one is None else "is gone" if other is None else "differs"
    return Difference(part, key, f"{part}: {label} {verb}")


def _changed_key(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    def switched(side: Mapping[str, Any], against: Mapping[str, Any]) -> bool:
        """A group that is null on one side and has keys on the other."""
        return key in side and side[key] is None and any(name.startswith(f"{key}.") for name in against)

    if key in one and key in other:
        if one[key] == other[key]:
            return []
        return [Difference("method", key, f"{key}: {one[key]!r:.80} before, {other[key]!r:.80} now")]
    if switched(one, other):
        return [Difference("method", key, f"{key}: null before, not now")]
    if switched(other, one):
        return [Difference("method", key, f"{key}: null now, not before")]
    return []


def _rows(one: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> str:
    """How two lists of (id, digest) differ."""
    before, now = (dict[str, str](rows) for rows in (one, other))
    kinds = {
        "inserted": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [name for name in now if name in before and now[name] != before[name]],
    }
    told = [
        f"{len(names):,} of its rows {kind} ({', '.join(islice(names, 3))}{', ...' * (len(names) > 3)})"
        for kind, names in kinds.items()
        if names
    ]
    return ", ".join(told) or "the rows are in another order"


def _row(task: Task) -> str:
    return _digest([getattr(task, field.name) for field in fields(task) if field.name != "tools"])[:8]


def _method(run: RunConfig) -> dict[str, Any]:
    free = (*FREE, *(PLANNED if run.plan == "auto" else ()))
    return {
        key: value
        for section in SECTIONS
        for key, value in _flat(section, getattr(run, section))
        if not any(f"{key}.".startswith(f"{name}.") for name in free)
        and (section != "train" or key.split(".")[1] in OF_TRAINING)
    }


def _flat(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    """(key, plain value) of a configuration; a group with free keys is one value."""
    if not isinstance(value, Config):
        return [(key, plain(value))]
    return [pair for name in type(value).model_fields for pair in _flat(f"{key}.{name}", getattr(value, name))]


def _code(value: Any) -> dict[str, str]:
    return {f"code in {file}": digest for file, digest in code_of(value).items()}


def without_limits(tool: Any) -> Any:
    """A tool's settings without those that do not change its results."""
    return {k: v for k, v in tool.items() if k not in ("cache", "limits")} if isinstance(tool, dict) else tool


def _documents(offered: Sequence[Any]) -> list[str]:
    options = [tool.get("options") or {} for tool in offered if isinstance(tool, dict)]
    return [str(each["documents"]) for each in options if each.get("documents")]


def _content(path: Path) -> str:
    """A digest of a file or a folder by names, sizes and both ends of each file, wherever it lies."""
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in (file for file in files if file.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size} ".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(EDGE))
            opened.seek(max(0, size - EDGE))
            digest.update(opened.read(EDGE))
    return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
    try:
        text = json.dumps(value, sort_keys=True, default=repr)
    except TypeError:  # keys of several types
        text = repr(value)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # where an object lies
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
