"""Decodes recorded tokens with the tokenizer in the run's folder. Needs neither the model nor transformers."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from arpo.foreign import WHOLE_BYTES, open_file


class Pieces:
    """Turns tokens into text. Special tokens are spelled out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_run(cls, run: Path) -> "Pieces | None":
        """The tokenizer in a run's folder; None where there is none that can be read."""
        path = run / "tokenizer" / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            open_file(path, WHOLE_BYTES).close()
            return cls(Tokenizer.from_file(str(path)))
        except Exception:  # noqa: BLE001 - tokenizers raises bare Exception for a file that it cannot read
            return None

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def split(self, tokens: Sequence[int]) -> list[str]:
        """The text of every token; joined they equal `text(tokens)`. A character of several tokens belongs to the last
        one."""
        stream, text = DecodeStream(skip_special_tokens=False), self.text(tokens)
        pieces = [stream.step(self._tokenizer, token) or "" for token in tokens]
        joined = "".join(pieces)
        if joined != text and text.startswith(joined) and pieces:  # the last character is incomplete
            pieces[-1] += text[len(joined) :]
        return pieces
