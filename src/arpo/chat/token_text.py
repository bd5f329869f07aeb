"""Turns text into tokens and back, at three levels of trust.

    trusted     text of a template: special tokens in it act
    written     text of a policy or a system prompt: only tags of the protocol may become added tokens
    untrusted   text from tools and data sets: it never becomes an added token of the vocabulary, whatever it spells

Knows the vocabulary's added tokens and how to disarm tags. Refuses to know turns, templates and tools.
"""

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from arpo.errors import ConfigError, FormatError

CUT_MARK = "…[cut]"
Piece = tuple[str, list[int]]  # a text and its tokens, encoded alone
_HELD = re.compile(r"qzheld(\d+)zq")  # stands for text that a template must not see
_PLACEHOLDER = re.compile(r"qz(?:held)?\d+zq")  # any placeholder, also those of `arpo.chat.conversation`
MAX_CHARS_PER_TOKEN = 32  # text beyond this many characters per allowed token is dropped without tokenising it


class TokenText:
    """The encoder of one tokenizer. `tags` names the tags of the protocol (`"search"` for `<search>` and `</search>`).

    It works on copies of the tokenizer's backend, so that its settings do not affect other users of the tokenizer.
    Raises ConfigError for a tokenizer without a fast backend.
    """

    def __init__(self, tokenizer: Any, tags: Iterable[str] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError("the tokenizer has no fast (Rust) backend", where="model", value=type(tokenizer).__name__)
        self.tokenizer = tokenizer
        self._trusting, self._literal = _copy(backend, literal=False), _copy(backend, literal=True)
        changed = [_treat_as_middle(copied) for copied in (self._trusting, self._literal)]
        self._opening = _copy(backend, literal=False) if any(changed) else self._trusting  # a copy takes 0.1 s
        self.set_tags(tags)

    def set_tags(self, tags: Iterable[str], marks: Iterable[str] = ()) -> None:
        """`marks`: added tokens with which a policy structures its turns, beside the tags that are added tokens."""
        names = "|".join(sorted(map(re.escape, tags), key=len, reverse=True)) or "(?!)"
        self._tag = re.compile(rf"(<\s*/?\s*)({names})(?![\w.-])", re.IGNORECASE)
        added = self._trusting.get_added_tokens_decoder()
        # runs of blanks are added tokens in some vocabularies; they have no effect, so untrusted text may contain them
        self._acting = {id_: token.content for id_, token in added.items() if token.content.strip()}
        special_tags = [t.content for t in added.values() if t.special and re.fullmatch(rf"</?({names})>", t.content)]
        self._special_tag = re.compile("|".join(map(re.escape, [*special_tags, *marks])) or "(?!)")
        self._spelled = re.compile(
            "|".join(sorted(map(re.escape, self._acting.values()), key=len, reverse=True)) or "(?!)"
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Special tokens are spelled out."""
        return str(self._trusting.decode(list(tokens), skip_special_tokens=False))

    def acts(self, token: int) -> bool:
        """True for an added token of the vocabulary, special or not, except for runs of blanks."""
        return token in self._acting

    def acts_as(self, text: str) -> bool:
        """True if `text` is an added token of the vocabulary."""
        return text in self._acting.values()

    def without_acting(self, text: str) -> str:
        """`text` without what spells an added token."""
        return self._spelled.sub("", text)

    def opening(self) -> list[int]:
        """Tokens that the tokenizer puts before any text (a beginning-of-sequence token), for prompts without a
        template."""
        probe = self._opening.encode("a", add_special_tokens=False).ids
        whole = self._opening.encode("a", add_special_tokens=True).ids
        return whole[: whole.index(probe[0])] if probe and probe[0] in whole else []

    def trusted(self, text: str) -> list[int]:
        return list(self._trusting.encode(text, add_special_tokens=False).ids) if text else []

    def written(self, text: str) -> list[int]:
        """Tokens of text as a policy writes it: tags of the protocol become their added tokens, other special tokens
        are spelled out."""
        tokens: list[int] = []
        at = 0
        for match in self._special_tag.finditer(text):
            tokens += self._encode(text[at : match.start()]) + self.trusted(match.group())
            at = match.end()
        return tokens + self._encode(text[at:])

    def untrusted(self, text: str) -> list[int]:
        """Tokens of untrusted text: none of them is an added token of the vocabulary."""
        text = encodable(text)
        tokens = self._encode(text)
        if self._acting.keys().isdisjoint(tokens):
            return tokens
        pieces, at = [], 0
        for match in self._spelled.finditer(text):  # split after the first character, so that no piece spells the token
            pieces.append(text[at : match.start() + 1])
            at = match.start() + 1
        tokens = [token for piece in [*pieces, text[at:]] for token in self._encode(piece)]
        if self._acting.keys().isdisjoint(tokens):
            return tokens
        return [token for character in text for token in self._encode(character) if token not in self._acting]

    def joined(self, pieces: Sequence[Piece]) -> list[int]:
        """Tokens of pieces that start a text, or follow a special token, encoded as one text: a token may span two
        pieces (a full stop and a newline, in Qwen's vocabulary). If the joined text contained an acting token that the
        pieces do not, the tokens of the single pieces in a row."""
        separate = [token for _, tokens in pieces for token in tokens]
        joined = list(self._opening.encode("".join(text for text, _ in pieces), add_special_tokens=False).ids)
        return joined if [t for t in joined if self.acts(t)] == [t for t in separate if self.acts(t)] else separate

    def held_out(self, value: Any, held: list[str]) -> Any:
        """`value` (JSON from outside, that a template is to render) with its tags disarmed, and a placeholder for
        everything in its texts and keys that would act. `pieces` puts these texts back, which are appended to `held`.
        """
        if isinstance(value, str):

            def hold(match: re.Match[str]) -> str:
                held.append(match.group())
                return f"qzheld{len(held) - 1}zq"

            text = self.disarm(encodable(value))
            kept = re.sub(f"{_PLACEHOLDER.pattern}|{self._spelled.pattern}", hold, text)
            if self.spells_token(kept):  # spelled in a way that the normaliser mends
                held.append(text)
                return f"qzheld{len(held) - 1}zq"
            return kept
        if isinstance(value, Mapping):
            return {self.held_out(key, held): self.held_out(inner, held) for key, inner in value.items()}
        return [self.held_out(inner, held) for inner in value] if isinstance(value, list | tuple) else value

    def pieces(self, text: str, held: Sequence[str], encode: Callable[[str], list[int]] | None = None) -> list[Piece]:
        """The pieces of a text with placeholders: what was held out is untrusted, the rest is encoded by `encode`, or
        else trusted."""
        parts, encode = _HELD.split(text), encode or self.trusted
        return [
            (held[int(part)], self.untrusted(held[int(part)])) if number % 2 else (part, encode(part))
            for number, part in enumerate(parts)
        ]

    def marks(self, text: str) -> list[str]:
        """The tokens in `text` with which the tokenizer marks texts: their beginning, end, padding, and the like."""
        kinds = ("bos", "eos", "pad", "sep", "cls", "mask")  # not `unk`, which stands for any text
        own = {getattr(self.tokenizer, f"{kind}_token_id", None) for kind in kinds} - {None}
        return [self.decode([token]) for token in self.trusted(text) if token in own]

    def spells_token(self, text: str) -> bool:
        """True where `text` holds an acting token of the vocabulary."""
        return not self._acting.keys().isdisjoint(self.trusted(text))

    def disarm(self, text: str) -> str:
        """`text` with a visible dot in every tag of the protocol: `<answer>` becomes `<.answer>`. Names of tools have
        no dots."""
        return self._tag.sub(r"\1.\2", text)

    def tool_text(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Tokens of text from a tool, at most `limit` of them (including the mark of a cut), and whether the text was
        cut.

        Tags of the protocol are disarmed, also those that only the tokenizer's normaliser creates.
        """
        chars = limit * MAX_CHARS_PER_TOKEN
        text, cut = text[:chars], len(text) > chars
        tokens = self.untrusted(self.disarm(text))
        decoded = self.decode(tokens)
        if self._tag.search(decoded):
            tokens = self.untrusted(self.disarm(decoded))
        if not cut and len(tokens) <= limit:
            return tokens, False
        mark = self.untrusted(CUT_MARK)
        tokens = self._whole_characters(tokens[: max(limit - len(mark), 0)])
        return (tokens + mark)[:limit], True

    def _whole_characters(self, tokens: list[int]) -> list[int]:
        """`tokens` without a broken character at the end (at most three tokens less)."""
        for drop in range(min(4, len(tokens))):
            kept = tokens[: len(tokens) - drop]
            if not self.decode(kept[-8:]).endswith("�"):
                return kept
        return tokens

    def _encode(self, text: str) -> list[int]:
        return list(self._literal.encode(text, add_special_tokens=False).ids) if text else []


def check_size(texts: Iterable[str], most_tokens: int) -> None:
    """Raises FormatError for texts that `most_tokens` tokens cannot hold, without tokenising them."""
    lengths = [*map(len, texts)]
    if (chars := sum(lengths)) > most_tokens * MAX_CHARS_PER_TOKEN or len(lengths) > most_tokens:
        has = f"{chars:,} characters in {len(lengths):,} parts"
        raise FormatError(f"the conversation has {has}, too many for {most_tokens:,} tokens")


def encodable(text: str) -> str:
    """`text` with a question mark for every lone surrogate, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _copy(backend: Any, *, literal: bool) -> Any:
    """A copy of the backend. If `literal`, it spells special tokens out instead of encoding them as themselves."""
    copied = copy.deepcopy(backend)
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = literal
    return copied


def _treat_as_middle(backend: Any) -> bool:
    """Make `backend` encode every text as the middle of a text. SentencePiece vocabularies put a blank before a text
    and remove it when they decode, which would add or lose a blank in the middle. Returns True if the encoding
    changed."""
    encoding_changed = False
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(backend, name)
        state = json.loads(part.__getstate__()) if part is not None else None
        changed = _without_blank(state)
        if changed != state:
            part.__setstate__(json.dumps(changed or {"type": "Sequence", f"{name}s": []}).encode())
            setattr(backend, name, part)
            encoding_changed = encoding_changed or name != "decoder"
    return encoding_changed


def _without_blank(state: Any) -> Any:
    """A component's state without the parts that add or remove the first blank; None if there are no other parts."""
    if isinstance(state, list):
        return [kept for part in state if (kept := _without_blank(part)) is not None]
    if not isinstance(state, dict):
        return state
    if state.get("type") == "Prepend" or (state.get("type"), state.get("content"), state.get("stop")) == (
        "Strip",
        " ",
        0,
    ):
        return None
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: never[key] if key in never else _without_blank(value) for key, value in state.items()}
