"""The measures that compare two texts, by the word that names them. Maths is not among them: it may need a process of its own."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from arpo.answer_text import contains, exact, f1
from arpo.rewards.choices import choice
from arpo.rewards.quantities import numeric
from arpo.rewards.short import gaia, short

BY_TEXT: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {"exact": exact, "f1": f1, "contains": contains, "numeric": numeric, "choice": choice, "short": short, "gaia": gaia}
)
