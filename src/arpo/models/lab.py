"""The laboratory's model: a small Llama with random weights, and a tokenizer that writes every word of the laboratory's
world as one token and anything else byte by byte. `model.source: arpo.models.lab:make` names it."""

from pathlib import Path

from arpo.tasks.lab import COLOURS, CUES, NOTHING, PLACES, TOOLS, UNKNOWN

END = "<|end|>"
_PARTS = ("doors", "holds:", "start:", " heard:", "yes", "no", "unsure", " any:", NOTHING, UNKNOWN)
_TAGS = tuple(f"<{slash}{tag}>" for tag in (*TOOLS, "answer", "result", "think") for slash in ("", "/"))
WORDS = (*_TAGS, *_PARTS, *(f" {cue}:" for cue in CUES), *PLACES, *COLOURS)


def make(
    folder: Path, *, hidden: int = 128, layers: int = 4, heads: int = 4, context: int = 512, seed: int = 0
) -> None:
    """Write the model (1.1 million parameters) with its tokenizer to `folder`, as a Hugging Face folder. Equal
    arguments give equal weights."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [byte.pre_tokenize_str(word)[0][0] for word in WORDS]
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
        tie_word_embeddings=True,
        initializer_range=hidden**-0.5,  # with transformers' 0.02 it takes several times as long to learn to copy
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
