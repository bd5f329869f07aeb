"""A study as a YAML file: which recipe, which cells, which seeds, and what is asked of them.

    recipe: lab                       # a path (from the study's folder), or a bundled recipe
    seeds: 10                         # 0 to 9; or a list
    set: {train.steps: 60}            # settings of every cell
    cells:                            # name: what it changes
      grpo: {rollout.rule: none}
      arpo: {rollout.rule: paper}
    grid: {rollout.leaves: [4, 8]}    # optional: every cell with every combination of these
    baseline: grpo                    # what the others are compared with; else the first cell
    accuracy: 0.7                     # level for "calls to reach"

Rows of finished cells lie beside it, in STUDY.rows.jsonl. Knows names, keys and overrides. Refuses to know how a cell
runs.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from arpo.config import Config
from arpo.config_errors import config_error
from arpo.errors import ConfigError, FormatError, first_line, nearest
from arpo.files import read_json_lines
from arpo.foreign import checked
from arpo.recipe.load import find, load_recipe, recipe_keys
from arpo.yaml_positions import read

Settings = dict[str, Any]
MOST_CELLS = 10_000  # with their seeds


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study. `key` identifies what it does: every key that the recipe, what it builds on, the study and
    the seed set. Comments and the places of files are no part of it."""

    name: str
    seed: int
    overrides: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a study keeps of a finished run."""

    cell: str
    seed: int
    key: str
    before: float | None
    """Accuracy on held-out tasks before training; None where there are none."""
    after: float | None
    seconds: float
    history: Mapping[str, list[float | None]]
    """Metrics by step, None where a step has none."""
    overrides: list[str] = field(default_factory=list)
    arpo: str = ""
    steps: int = 0


class Study(Config):
    """What a study's file says."""

    recipe: Annotated[str, Field(min_length=1)]
    """The recipe that every cell changes."""
    seeds: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=0)]] = 10
    """Number of seeds (0, 1, ...), or the seeds themselves."""
    set: Settings = Field(default_factory=dict)
    """Settings of every cell, by dotted key."""
    cells: Annotated[dict[str, Settings], Field(min_length=1)]
    """What each cell changes, by its name."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values by dotted key: every cell runs with every combination."""
    baseline: str | None = None
    """The cell that the others are compared with; null: the first."""
    accuracy: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The training accuracy for which calls are counted."""

    @cached_property
    def variants(self) -> dict[str, Settings]:
        """Settings by the name of the cell, the grid's values in it."""
        combinations = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        return {
            ", ".join([name, *(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())]): {
                **self.set,
                **own,
                **values,
            }
            for name, own in self.cells.items()
            for values in combinations
        }


def read_study(path: Path) -> Study:
    """Read and check a study: every cell's recipe too. Raises ConfigError."""
    given = read(path)
    try:
        study = Study.model_validate(given.value)
    except ValidationError as error:
        raise config_error(error, given, Study) from error
    seeds = study.seeds if isinstance(study.seeds, int) else len(study.seeds)
    if (count := seeds * len(study.cells) * math.prod(map(len, study.grid.values()))) > MOST_CELLS:
        raise ConfigError(f"has more than {MOST_CELLS:,} cells, seeds counted", where=str(path), value=count)
    if study.baseline is not None and study.baseline not in study.variants:
        raise ConfigError(
            "there is no such cell",
            where=f"{path}: baseline",
            value=study.baseline,
            hint=nearest(study.baseline, study.variants),
        )
    for name, settings in study.variants.items():
        try:
            load_recipe(recipe_of(study, path), overrides_of(settings))
        except ConfigError as error:
            where = f"{path}: cell {name}: {error.where}"
            raise ConfigError(error.message, where=where, value=error.value, hint=error.hint) from error
    return study


def recipe_of(study: Study, path: Path) -> Path:
    beside = path.parent / study.recipe
    return find(beside if beside.is_file() else study.recipe)


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value if key == 'method' else json.dumps(value)}" for key, value in settings.items()]


def cells_of(study: Study, path: Path) -> list[Cell]:
    """All cells, seed by seed, so that a study which is stopped early has whole seeds."""
    recipe = recipe_of(study, path)
    seeds = range(study.seeds) if isinstance(study.seeds, int) else study.seeds
    cells = []
    for seed in seeds:
        for name, settings in study.variants.items():
            overrides = (*overrides_of(settings), f"seed={seed}")
            keys = recipe_keys(recipe, overrides)
            settings = {
                k: _portable(v, path.parent.resolve()) for k, v in keys.items() if k not in ("name", "out", "code")
            }
            text = json.dumps(settings, sort_keys=True, default=str)
            cells.append(Cell(name, seed, overrides, hashlib.sha256(text.encode()).hexdigest()[:12]))
    return cells


def _portable(value: Any, folder: Path) -> Any:
    """`value` with paths as they are seen from `folder`, the same on every machine."""
    if isinstance(value, dict):
        return {key: _portable(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner, folder) for inner in value]
    return os.path.relpath(value, folder) if isinstance(value, str) and os.path.isabs(value) else value


def rows_path(path: Path) -> Path:
    return path.with_suffix(".rows.jsonl")


def read_rows(path: Path) -> list[Row]:
    """The rows of finished cells, the last one of each key. Raises FormatError."""
    rows: dict[str, Row] = {}
    for number, line in enumerate(read_json_lines(rows_path(path)), 1):
        try:
            row = checked(Row(**line))
            if len({len(values) for values in row.history.values()}) > 1:
                raise FormatError("its metrics are not of the same steps")
        except (TypeError, FormatError) as error:
            raise FormatError(f"{rows_path(path)}: row {number} is none of a study: {first_line(error)}") from error
        rows[row.key] = row
    return list(rows.values())
