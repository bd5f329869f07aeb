"""Engine configuration reads without torch and tells what is wrong."""

import subprocess
import sys

import pytest

from arpo.engines.config import EngineConfig, names_fast_bf16
from arpo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2\nbugs : avx512_bf16\n", False),
        ("", False),
    ],
)
def test_fast_bf16_is_read_from_the_cpu_flags(text, fast):
    assert names_fast_bf16(text) is fast


def test_wrong_values_are_refused():
    for wrong in ({"kind": "vlm"}, {"slots": 0}, {"dtype": "float8"}, {"slot": 3}):
        with pytest.raises(ConfigError):
            EngineConfig(**wrong)
    assert EngineConfig(kind="my_package.engines:build").slots == 64


def test_configuration_and_the_scripted_engine_need_no_torch():
    code = (
        "import sys, arpo.engines.config, arpo.engines.scripted; assert not {'torch', 'transformers'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
