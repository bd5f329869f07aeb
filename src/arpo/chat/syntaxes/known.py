"""The syntaxes that this version reads, in the order in which they are tried on a template."""

from arpo.chat.syntaxes import Syntax
from arpo.chat.syntaxes.gemma import GEMMA
from arpo.chat.syntaxes.harmony import HARMONY
from arpo.chat.syntaxes.headed_json import DEEPSEEK, KIMI, MISTRAL
from arpo.chat.syntaxes.llama import LLAMA
from arpo.chat.syntaxes.pythonic import LFM
from arpo.chat.syntaxes.tagged_json import APRIEL, COHERE, HERMES, NEMOTRON, PHI
from arpo.chat.syntaxes.tagged_values import DSML, GLM, MINIMAX, QWEN_XML, SEED

SYNTAXES: tuple[Syntax, ...] = (
    SEED,
    QWEN_XML,
    GLM,
    MINIMAX,
    DSML,
    MISTRAL,
    DEEPSEEK,
    KIMI,
    HARMONY,
    PHI,
    COHERE,
    NEMOTRON,
    APRIEL,
    LFM,
    GEMMA,
    HERMES,
    LLAMA,  # last: its calls are JSON without a mark of their own
)


def foreign_opening(text: str, own: Syntax | None = None) -> str:
    """The mark in `text` with which a call of a syntax other than `own` begins, or ""."""
    return next((mark for syntax in SYNTAXES if syntax is not own and (mark := syntax.opening(text))), "")
