"""Stop strings are found at the token that completes them, however the text is cut into tokens."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.engines.stops import StopFinder, pieces

STOPS = ("</search>", "</python>", "🙂é", "x")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["</sea", "rch>", "</", "search>", "pyth", "on>", "🙂", "é", " ", "a", "</python", ">"]),
        max_size=12,
    ),
    st.data(),
)
def test_agrees_with_searching_the_whole_text(parts, data):
    text = "".join(parts).encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)) | {0, len(text)})
    tokens = [text[a:b] for a, b in itertools.pairwise(cuts)]
    stops = tuple(data.draw(st.sets(st.sampled_from(STOPS), min_size=1)))
    finder = StopFinder(lambda i: tokens[i], stops, ())
    ended = next((i for i in range(len(tokens)) if finder.feed(i)), None)
    whole = next((i for i, end in enumerate(cuts[1:]) if any(s.encode() in text[:end] for s in stops)), None)
    assert ended == whole
    finder, taken = StopFinder(lambda i: tokens[i], stops, ()), None
    runs = sorted(data.draw(st.sets(st.integers(0, len(tokens)), max_size=5)) | {0, len(tokens)})
    for start, end in itertools.pairwise(runs):  # the same by whole runs of tokens
        if taken is None and (first := finder.first(range(start, end))) is not None:
            taken = start + first - 1
    assert taken == whole


def test_pieces_spell_what_the_tokenizer_decodes(tokenizer):
    spell = pieces(tokenizer)
    for text in ["plain words", "l'été à 東京 🙂🙂", "<|im_end|>a\n\n<tool_call> {}", "  two  spaces\t"]:
        ids = tokenizer.encode(text)
        assert b"".join(map(spell, ids)).decode() == tokenizer.decode(ids) == text


def sentence_piece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
    for word in ["▁", "▁the", "▁end", "a", "b"]:
        vocabulary[word] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_level():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "stop": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


@pytest.mark.parametrize("make", [sentence_piece, word_level])
def test_other_vocabularies(make):
    tokenizer = make()
    spell = pieces(tokenizer)
    for text in ["a b", "b a a b"]:
        ids = tokenizer.encode(text)
        assert b"".join(map(spell, ids)).decode().strip() == tokenizer.decode(ids).strip()


def test_bytes_of_a_split_character():
    tokenizer = sentence_piece()
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "🙂".encode()]
    finder = StopFinder(pieces(tokenizer), ("🙂",), ())
    assert [finder.feed(i) for i in ids] == [False, False, False, True]
