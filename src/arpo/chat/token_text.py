"""Text to tokens and back, in three degrees of trust.

    trusted   text of a template: special tokens in it act
    written   text a policy (or a system prompt) writes: the protocol's tags may be tokens of their own, nothing else acts
    plain     text from the world (tools, data sets): no added token of the vocabulary comes out, whatever it spells

Knows the vocabulary's added tokens and how to disarm tags. Refuses to know turns, templates and tools.
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from arpo.errors import ConfigError

CUT_MARK = "…[cut]"
Piece = tuple[str, list[int]]  # text, and its tokens where it stands alone
MOST_CHARS_A_TOKEN = 32  # text beyond this times the cap is dropped unread: megabytes are never tokenised


class TokenText:
    """The encoder of one tokenizer. `tags` names the tags of the protocol (`"search"` for `<search>` and `</search>`).

    Works on copies of the tokenizer's backend, so that no switch is shared with other users of the tokenizer.
    Raises ConfigError for a tokenizer without a fast backend.
    """

    def __init__(self, tokenizer: Any, tags: Iterable[str] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError("the tokenizer has no fast (Rust) backend", where="model", value=type(tokenizer).__name__)
        self.tokenizer = tokenizer
        self._trusting, self._plain = _own(backend, plain=False), _own(backend, plain=True)
        middles = [_treat_as_middle(one) for one in (self._trusting, self._plain)]
        self._opening = _own(backend, plain=False) if any(middles) else self._trusting  # a copy takes a tenth of a second
        self.set_tags(tags)

    def set_tags(self, tags: Iterable[str]) -> None:
        names = "|".join(sorted(map(re.escape, tags), key=len, reverse=True)) or "(?!)"
        self._tag = re.compile(rf"(<\s*/?\s*)({names})(?![\w.-])", re.IGNORECASE)
        added = self._trusting.get_added_tokens_decoder()
        # runs of blanks are added tokens in some vocabularies; they mean nothing, so they may come out of plain text
        self._acting = {id_: token.content for id_, token in added.items() if token.content.strip()}
        own = [t.content for t in added.values() if t.special and re.fullmatch(rf"</?({names})>", t.content)]
        self._own_special = re.compile("|".join(map(re.escape, own)) or "(?!)")
        self._spelled = re.compile("|".join(sorted(map(re.escape, self._acting.values()), key=len, reverse=True)) or "(?!)")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones spelled out."""
        return str(self._trusting.decode(list(tokens), skip_special_tokens=False))

    def acts(self, token: int) -> bool:
        """True for an added token of the vocabulary (special or not, runs of blanks aside)."""
        return token in self._acting

    def opening(self) -> list[int]:
        """Tokens that the tokenizer itself puts before any text (a beginning-of-sequence token), for prompts without a template."""
        probe = self._opening.encode("a", add_special_tokens=False).ids
        whole = self._opening.encode("a", add_special_tokens=True).ids
        return whole[: whole.index(probe[0])] if probe and probe[0] in whole else []

    def trusted(self, text: str) -> list[int]:
        return list(self._trusting.encode(text, add_special_tokens=False).ids) if text else []

    def written(self, text: str) -> list[int]:
        """Tokens of text as a policy writes it: added tokens of the protocol are themselves, special tokens are spelled."""
        tokens: list[int] = []
        at = 0
        for match in self._own_special.finditer(text):
            tokens += self._encode(text[at : match.start()]) + self.trusted(match.group())
            at = match.end()
        return tokens + self._encode(text[at:])

    def plain(self, text: str) -> list[int]:
        """Tokens of text in which nothing acts: none of them is an added token of the vocabulary."""
        text = encodable(text)
        tokens = self._encode(text)
        if self._acting.keys().isdisjoint(tokens):
            return tokens
        pieces, at = [], 0
        for match in self._spelled.finditer(text):  # broken after its first character, no piece spells the token
            pieces.append(text[at : match.start() + 1])
            at = match.start() + 1
        tokens = [token for piece in [*pieces, text[at:]] for token in self._encode(piece)]
        if self._acting.keys().isdisjoint(tokens):
            return tokens
        return [token for character in text for token in self._encode(character) if token not in self._acting]

    def joined(self, pieces: Sequence[Piece]) -> list[int]:
        """Tokens of pieces from the start of a text, or from a special token on, as the tokenizer writes all of it at once: a token
        may span two of them (a full stop and a line end, in Qwen's vocabulary). One piece after the other where at once something
        would act that acts in none of them."""
        alone = [token for _, tokens in pieces for token in tokens]
        whole = list(self._opening.encode("".join(text for text, _ in pieces), add_special_tokens=False).ids)
        return whole if [t for t in whole if self.acts(t)] == [t for t in alone if self.acts(t)] else alone

    def disarm(self, text: str) -> str:
        """`text` with a visible dot in every tag of the protocol: `<answer>` becomes `<.answer>`. No tool's name holds a dot."""
        return self._tag.sub(r"\1.\2", text)

    def foreign(self, text: str, most: int) -> tuple[list[int], bool]:
        """Tokens of text from a tool, at most `most` of them (the cut mark included), and whether it was cut.

        Tags of the protocol are disarmed, also where only the tokenizer's normaliser makes them one.
        """
        text, cut = self._shorten(text, most * MOST_CHARS_A_TOKEN)
        tokens = self.plain(self.disarm(text))
        back = self.decode(tokens)
        if self._tag.search(back):
            tokens = self.plain(self.disarm(back))
        if not cut and len(tokens) <= most:
            return tokens, False
        mark = self.plain(CUT_MARK)
        tokens = self._whole(tokens[: max(most - len(mark), 0)])
        return (tokens + mark)[:most], True

    @staticmethod
    def _shorten(text: str, chars: int) -> tuple[str, bool]:
        return text[:chars], len(text) > chars

    def _whole(self, tokens: list[int]) -> list[int]:
        """Without a character broken in the middle at the end (at most three tokens less)."""
        for drop in range(min(4, len(tokens))):
            kept = tokens[: len(tokens) - drop]
            if not self.decode(kept[-8:]).endswith("�"):
                return kept
        return tokens

    def _encode(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []


def encodable(text: str) -> str:
    """`text` with a question mark for each lone surrogate, which no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def _own(backend: Any, *, plain: bool) -> Any:
    own = copy.deepcopy(backend)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = plain
    return own


def _treat_as_middle(backend: Any) -> bool:
    """Sentence-piece vocabularies put a blank before any text and take it away again. In the middle of a text it would be one that
    nobody wrote, or one lost. True where texts are now encoded in another way."""
    found = False
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(backend, name)
        state = json.loads(part.__getstate__()) if part is not None else None
        changed = _without_blank(state)
        if changed != state:
            part.__setstate__(json.dumps(changed or {"type": "Sequence", f"{name}s": []}).encode())
            setattr(backend, name, part)
            found = found or name != "decoder"
    return found


def _without_blank(state: Any) -> Any:
    """A component's description without what adds or takes a text's first blank; None for one that does nothing else."""
    if isinstance(state, list):
        return [kept for each in state if (kept := _without_blank(each)) is not None]
    if not isinstance(state, dict):
        return state
    if state.get("type") == "Prepend" or (state.get("type"), state.get("content"), state.get("stop")) == ("Strip", " ", 0):
        return None
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: never[key] if key in never else _without_blank(value) for key, value in state.items()}
