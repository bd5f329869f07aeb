"""Fixtures that many tests share: a small tokenizer with a real model's habits, made in well under a second."""

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

# Before torch loads. Networks of tests are so small that a second thread costs more than it computes, and several
# workers of
# pytest-xdist share the machine. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings

from tiny_project import finished_tiny_run, own_project, sketch_plots, tiny_files, tiny_project, tiny_run

__all__ = ["finished_tiny_run", "own_project", "tiny_files", "tiny_project", "tiny_run"]

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's job in the background ignores Ctrl-C, and so would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is. Each run draws other examples, so many runs see many.
settings.register_profile("any machine", deadline=None, max_examples=30)
settings.load_profile("any machine")

# Millions of objects of imported modules stay for good: Python's collector need not look through them again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Files whose slow tests take minutes are given out first: else one process ends long after the others.
LONGEST = (
    *("test_soak", "test_quickstart", "test_benchmarks_quick", "test_ranks", "test_torchrun", "test_pipeline"),
    *("test_shutdown", "test_browser", "test_browser_tree", "test_known_answers", "test_learning", "test_sources"),
    *("test_quickstart_compare", "test_newest_transformers", "test_against_trl", "test_bundled_cold_start"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "slow":
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


CHATML = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}"
    "{% endif %}# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    'Call them as <tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n'
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ message.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif message.role != 'system' or not loop.first %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# punctuation takes the line ends after it along, as in Qwen's tokenizers: a closing tag's last token may overhang
SPLIT = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LINES = [
    "<think>I look up the capital of Peru.</think><search>capital of Peru</search>\n<result>Peru: Lima is the "
    "capital.</result>\n",
    "<think>Lima it is, so I am done.</think><answer>Lima</answer>",
    "<think>Add.</think>\n<python>print(1 + 2)</python>\n\n<result>3</result>\n<answer>\\boxed{3}</answer>",
    '<tool_call>\n{"name": "search", "arguments": {"query": "Lima"}}\n</tool_call><tool_response>\nLima\n'
    "</tool_response>",
    "system user assistant\nWhich city is the capital of the country where the river rises? (No calls left: "
    "answer now.)",
]


def train_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE with `<|im_end|>` as end of turn and `<tool_call>` as an added token that is not special (as in
    Qwen)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    bpe.train_from_iterator(LINES * 4, trainer)
    bpe.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A small real tokenizer with a ChatML template that knows tools. Do not change it: the session shares it."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """The same with a template that ignores tools (as SmolLM2's does)."""
    return train_tokenizer(PLAIN_CHATML)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str | None], Any]:
    """Makes one with another chat template, or with none."""
    return train_tokenizer


@pytest.fixture(autouse=True)
def quick_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that a test makes in this process have sketches for plots, unless it is marked `real_plots`."""
    if not request.node.get_closest_marker("real_plots"):
        sketch_plots(monkeypatch)
