"""Published settings of evaluations by name: what is laid over a recipe before the command line's own settings.

Knows the paper's numbers (arXiv 2507.19849). Tools stay the recipe's: where passages come from is a matter of keys and corpora.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from arpo.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Preset:
    says: str
    overrides: tuple[str, ...]
    tools: tuple[str, ...]  # that an agent is expected to have under it


_SAMPLING = ("evaluation.temperature=0.6", "evaluation.top_p=0.95", "evaluation.greedy_limit=0")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "arpo-reasoning": Preset(
            "temperature 0.6, top-p 0.95, 3 calls, snippets of search results, answers of 4,096 tokens in all",
            (
                *_SAMPLING,
                "rollout.max_calls=3",
                "rollout.turn_tokens=2048",
                "rollout.branch_tokens=5632",
                "chat.result_tokens=1024",
            ),
            ("search", "python"),
        ),
        "arpo-deepsearch": Preset(
            "temperature 0.6, top-p 0.95, 5 calls, pages opened and summarised, answers of 10,000 tokens in all",
            (
                *_SAMPLING,
                "rollout.max_calls=5",
                "rollout.turn_tokens=4096",
                "rollout.branch_tokens=12000",
                "chat.result_tokens=2048",
            ),
            ("search", "page", "python"),
        ),
    }
)


def preset(name: str) -> Preset:
    """Raises ConfigError naming the nearest."""
    if name not in PRESETS:
        raise ConfigError("there is no such preset", where="--preset", value=name, hint=nearest(name, PRESETS))
    return PRESETS[name]
