"""Chat formats as model families publish them, in small: each with its special tokens, its kind of vocabulary and a
template of the same structure (default system prompts, roles that must alternate, thoughts that are opened or stripped,
calls in its own way).
"""

from functools import cache
from typing import Any

SPLIT = (
    r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""  # as in Llama 3, Qwen
)
LINES = [
    "<think>I look up the capital of Peru.</think><search>capital of Peru</search>\n<result>Peru: Lima is the "
    "capital.</result>\n",
    "<think>\nLima it is.\n</think>\n\nThe answer is Lima.\n\n# Tools\n\nYou may call one or more functions.\n"
    "Where is Lima?\n",
    '<tool_call>\n{"name": "search", "arguments": {"query": "Lima"}}\n</tool_call><tool_response>\nLima.\n'
    "</tool_response>",
    "system user assistant model\nBe brief.\n\nWhich city is the capital?\n[INST] Where is Lima? [/INST] In Peru.</s>",
]

QWEN_TOOLS = (
    "{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + SYSTEM_END }}{% else %}SYSTEM{% endif %}"
    "# Tools\n\nYou may call functions. Their signatures stand within <tools></tools>:\n<tools>"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}\n</tools>\n\nCALLS<|im_end|>\n"
)
HERMES_CALLS = (
    'For each call return\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
QWEN_TURNS = (
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + ASSISTANT + '<|im_end|>\\n' }}"
    "{% elif message.role != 'system' or not loop.first %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}HEADER{% endif %}"
)


def _qwen(default: str = "", calls: str = HERMES_CALLS, assistant: str = "message.content", header: str = "") -> str:
    alone = f"{{% else %}}<|im_start|>system\n{default}<|im_end|>\n" if default else ""
    system = (
        "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
        + alone
    )
    tools = (
        QWEN_TOOLS.replace("SYSTEM_END", "'\\n\\n'")
        .replace("SYSTEM", f"{default}\n\n" if default else "")
        .replace("CALLS", calls)
    )
    turns = QWEN_TURNS.replace("ASSISTANT", assistant).replace("HEADER", header)
    return "{% if tools %}" + tools + system + "{% endif %}" + turns


STRIPPED = "(message.content.split('</think>')[-1].lstrip('\\n') if not loop.last else message.content)"
ALTERNATE = (
    "{% for message in turns %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n{% if tools is not none %}Environment: ipython\n{% endif %}"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string | default('26 Jul 2024') }}\n\n"
    "{{ system }}<|eot_id|>{% if tools is not none %}<|start_header_id|>user<|end_header_id|>\n\n"
    "Respond with JSON for a function call: "
    '{"name": function name, "parameters": its arguments}.\n\n{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n'
    "{% endfor %}"
    "{{ turns[0].content | trim }}<|eot_id|>{% set turns = turns[1:] %}{% endif %}"
    "{% for message in turns %}{% if message.role in ('tool', 'ipython') %}"
    "<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ message.content | tojson }}<|eot_id|>{% elif message.tool_calls %}"
    "{% set call = message.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (  # the system prompt joins the last user message
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    + ALTERNATE
    + "{% if message.role == 'user' %}{% if loop.last and system is not none %}"
    "{{ '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_OLD = (
    "{% set turns = messages %}{{ bos_token }}"
    + ALTERNATE
    + "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set turns = messages %}"
    + ALTERNATE
    + "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages if message.role == 'system' %}{{ message.content }}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
    "{% elif message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + eos_token }}"
    "{% elif message.role == 'tool' %}{{ '<｜tool▁outputs▁begin｜>' + message.content + '<｜tool▁outputs▁end｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
HERMES = {
    "default": _qwen("You are a helpful assistant.")
    .replace("'\\n<tool_response>\\n' +", "'\\n' +")
    .replace("\\n</tool_response>", ""),
    "tool_use": _qwen(),
}
SMOL = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CALL_TAGS = ["<tool_call>", "</tool_call>"]
THINK_TAGS = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
QWEN = {"special": CHATML, "added": CALL_TAGS, "eos": "<|im_end|>", "pad": "<|endoftext|>"}
QWEN3 = {**QWEN, "added": [*CALL_TAGS, *THINK_TAGS]}
SENTENCES = {"special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "bos": "<s>", "eos": "</s>", "pieces": "first"}
EMPTY_THOUGHT = (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)

FORMATS: dict[str, dict[str, Any]] = {
    "qwen2.5": {**QWEN, "template": _qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")},
    "qwen3": {**QWEN3, "template": _qwen(assistant=STRIPPED, header=EMPTY_THOUGHT)},
    "qwen3-thinking": {**QWEN3, "template": _qwen(assistant=STRIPPED, header="{{ '<think>\\n' }}")},
    "hermes3": {**QWEN, "template": HERMES},
    "smollm2": {"special": CHATML, "eos": "<|im_end|>", "bos": "<|im_start|>", "pad": "<|im_end|>", "template": SMOL},
    "llama3.1": {
        "special": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
                    "<|python_tag|>"],
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
        "template": LLAMA3,
    },
    "r1-distill": {
        "special": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "added": ["<think>", "</think>"],
        "bos": "<｜begin▁of▁sentence｜>",
        "eos": "<｜end▁of▁sentence｜>",
        "template": R1,
    },
    "phi3": {**SENTENCES,
             "special": [*SENTENCES["special"], "<|endoftext|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"],
             "eos": "<|endoftext|>", "template": PHI},
    "mistral": {**SENTENCES, "template": MISTRAL},
    "mistral-old": {**SENTENCES, "special": ["<unk>", "<s>", "</s>"], "pieces": "always", "template": MISTRAL_OLD},
    "gemma2": {
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "bos": "<bos>",
        "eos": "<eos>",
        "pieces": "never",
        "template": GEMMA,
    },
}  # fmt: skip
REASONING = ("qwen3-thinking", "r1-distill")  # whose template opens the thought
HERMES_STYLE = ("qwen2.5", "qwen3", "qwen3-thinking", "hermes3")  # whose template lists tools and shows these calls
OWN_CALLS = ("llama3.1",)  # whose template lists tools and writes other calls: `family_formats` has more of these


@cache
def published(name: str) -> Any:
    """The tokenizer of one of FORMATS. Do not change it: tests share it."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    form = FORMATS[name]
    backend = _byte_level(form) if "pieces" not in form else _sentence_pieces(form)
    backend.add_tokens([AddedToken(text, normalized=False) for text in form.get("added", ())])
    names = {f"{kind}_token": form[kind] for kind in ("bos", "eos", "pad") if kind in form}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = form["template"]
    return tokenizer


def _byte_level(form: dict[str, Any]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    parts = [
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=form["special"], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(LINES * 4, trainer)
    return backend


def _sentence_pieces(form: dict[str, Any]) -> Any:
    """A vocabulary of pieces with `▁` for blanks and bytes for what it lacks."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form["pieces"])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=form["special"], show_progress=False, min_frequency=1)
    trained.train_from_iterator([line.replace("\n", " ") for line in LINES] * 4, trainer)
    model = json.loads(trained.to_str())["model"]
    words = [*form["special"], *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [word for word in model["vocab"] if word not in form["special"]]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    vocab = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form["pieces"], split=False)
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts if form["pieces"] == "never" else [*parts, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in form["special"]])
    return backend
