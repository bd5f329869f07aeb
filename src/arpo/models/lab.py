"""The models of the built-in worlds: a small Llama with random weights, and a tokenizer that writes every word of the
world as one token and anything else byte by byte. `model.source: arpo.models.lab:make` names the laboratory's,
`arpo.models.lab:make_recall` the recall world's."""

from collections.abc import Sequence
from pathlib import Path

from arpo.tasks import recall
from arpo.tasks.lab import COLOURS, CUES, NOTHING, PLACES, TOOLS, UNKNOWN

END = "<|end|>"
_INIT = 0.05  # standard deviation of random weights, and scale of the copying ones
_PARTS = ("doors", "holds:", "start:", " heard:", "yes", "no", "unsure", " any:", NOTHING, UNKNOWN)


def _tags(*tools: str) -> tuple[str, ...]:
    return tuple(f"<{slash}{tag}>" for tag in (*tools, "answer", "result", "think") for slash in ("", "/"))


WORDS = (*_tags(*TOOLS), *_PARTS, *(f" {cue}:" for cue in CUES), *PLACES, *COLOURS)
RECALL_WORDS = (
    *_tags(recall.TOOL),
    *(recall.QUESTION, recall.NOTED, recall.ASKED, UNKNOWN, "dropped"),
    *(f" {word}" for word in (*recall.WEATHER, *recall.KINDS)),
    *recall.WEATHER,
    *(fact for kind in recall.KINDS.values() for fact in kind),
)


def make_recall(folder: Path) -> None:
    """Write the recall world's model (0.2 million parameters) to `folder`: `make` with that world's words, two layers,
    and room for long contexts."""
    make(folder, words=RECALL_WORDS, hidden=64, layers=2, heads=2, context=4096)


def make(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 512,
    seed: int = 0,
) -> None:
    """Write the model (1.1 million parameters) with its tokenizer to `folder`, as a Hugging Face folder. `words`: each
    is one token. Equal arguments give equal weights.

    Weights are random, but attention starts as a copy: its value and output projections are a scaled identity
    (mimetic initialization, Trockman and Kolter, arXiv 2305.09828, with the sign that copies), and the head has the
    rows of the embedding. What is attended to becomes likelier, which helps to name a place that was read: after 150
    updates of the cold start of recipes/lab.yaml the loss is 0.40, where attention and head start at random 0.52.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()  # bars for local files are noise, and break a live display
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [byte.pre_tokenize_str(word)[0][0] for word in words]
    # the likeliest split has the fewest bytes beside words
    scores = [*((piece, -1.0) for piece in pieces), *((letter, -20.0) for letter in sorted(byte.alphabet()))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=None))
    tokenizer.pre_tokenizer, tokenizer.decoder = byte, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=_INIT,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for layer in model.model.layers:
                torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight)
                layer.self_attn.o_proj.weight.copy_(_INIT * layer.self_attn.v_proj.weight.T)
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.save_pretrained(folder)
