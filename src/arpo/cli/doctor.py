"""`arpo doctor` reports what works on this machine, how fast, and what to change. It installs and downloads nothing."""

import asyncio
import importlib.metadata as metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from arpo.errors import install

# Tested together (constraints.txt has the whole set).
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "gguf": "0.19.0",
    "pydantic-monty": "1.4.0",
}
EXTRAS = {
    "cluster": ("ray", "ranks on a Ray cluster (cluster.ranks)"),
    "hub": ("datasets", "data sets from the Hugging Face Hub"),
    "gym": ("reasoning_gym", "reasoning-gym's tasks"),
    "web": ("trafilatura", "web search and pages"),
    "mcp": ("mcp", "tools of MCP servers"),
    "nf4": ("bitsandbytes", "weights of 4 bits under LoRA (model.lora.base)"),
    "int8": ("torchao", "moments of 8 bits (optim.moments)"),
    "dense": ("sentence_transformers", "dense and hybrid search"),
    "vllm": ("vllm", "the engine vllm (or give it an environment of its own: docs/vllm.md)"),
    "tracking": ("wandb", "Weights & Biases, MLflow"),
}
NEEDED_MEMORY_GB, NEEDED_DISK_GB = 7.0, 4.0  # the quickstart's peak: 6.6 GB in float32 (docs/performance.md)


class Level(StrEnum):
    FINE = "ok"
    NOTE = "note"  # works, but something could be better
    PROBLEM = "problem"  # does not work


@dataclass(frozen=True, slots=True)
class Diagnosis:
    what: str
    text: str
    level: Level = Level.FINE
    advice: str = ""


@dataclass(frozen=True, slots=True)
class MatmulSpeed:
    """Measured speed of a square matrix product, in GFLOP/s."""

    bfloat16: float
    float32: float


def examine() -> Iterator[Diagnosis]:
    """Run all checks, in half a minute, and yield every finding. The last one estimates the time of the quickstart."""
    yield _python()
    yield from _torch()
    yield _threads()
    yield _memory()
    yield from _disk()
    yield from _versions()
    yield _vllm()
    yield _sandbox()
    yield _levels()
    yield from _models()
    yield from _extras()
    yield _quickstart()


def show(findings: Iterator[Diagnosis], *, ready: str = "\nReady: arpo train quickstart") -> bool:
    """Print findings as they come; `ready` where none is a problem. Returns True if none is a problem."""
    from rich.table import Table
    from rich.text import Text

    from arpo.display.terminal import Console

    console = Console(soft_wrap=not sys.stdout.isatty())
    colours = {Level.FINE: "green", Level.NOTE: "yellow", Level.PROBLEM: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, width in (("level", 7), ("what", 14)):
        table.add_column(name, min_width=width, no_wrap=True)
    table.add_column("text", overflow="fold")
    seen = []
    for finding in findings:
        seen.append(finding)
        advice = f"\n{finding.advice}" if finding.advice else ""
        table.add_row(Text(finding.level, style=colours[finding.level]), finding.what, finding.text + advice)
    console.print(table)
    problems = sum(finding.level is Level.PROBLEM for finding in seen)
    console.print(f"\n{problems} problem(s)" if problems else ready)
    return not problems


def _python() -> Diagnosis:
    machine, system = platform.machine().lower(), platform.system()
    text = f"{platform.python_version()} on {system} {machine}"
    known = (system, machine) in {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Darwin", "x86_64")}
    if not known:
        return Diagnosis(
            "python",
            text,
            Level.NOTE,
            "supported are Linux on x86-64 and aarch64, and macOS; tested is Linux on x86-64",
        )
    return Diagnosis("python", text)


def _torch() -> Iterator[Diagnosis]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Diagnosis("torch", f"cannot be imported: {error}", Level.PROBLEM, "pip install torch==2.13.0")
        return
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    text = f"{torch.__version__}, {build} build"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield Diagnosis("torch build", f"{text}; {names}")
    elif torch.version.cuda:
        advice = "the CPU build is gigabytes smaller: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
        yield Diagnosis("torch build", f"{text}, but no GPU is found", Level.NOTE, advice)
    else:
        yield Diagnosis("torch build", text)
    yield _bfloat16()


def _quickstart() -> Diagnosis:
    """Train and sample a model of the quickstart's shape for some seconds, and estimate its run from the timings."""
    try:
        from arpo.cli.forecast import forecast_quickstart

        expected = forecast_quickstart()
    except (ImportError, OSError):  # an earlier finding reports what is missing
        return Diagnosis("quickstart", "how long it would take cannot be measured", Level.NOTE)
    return Diagnosis(
        "quickstart", f"takes about {expected.minutes:.0f} minutes here, installation apart ({expected.text})"
    )


def _bfloat16() -> Diagnosis:
    from arpo.engines.config import has_fast_bf16

    speed = matmul_speed()
    text = f"matrix products of one process: {speed.bfloat16:,.0f} GFLOP/s in bfloat16, {speed.float32:,.0f} in float32"
    if has_fast_bf16():
        if speed.bfloat16 < speed.float32:
            return Diagnosis(
                "bfloat16", text, Level.NOTE, "this CPU should be faster in bfloat16: is it busy with something else?"
            )
        return Diagnosis("bfloat16", text)
    return Diagnosis("bfloat16", f"{text}; this CPU has no bfloat16 instructions: models run in float32")


def matmul_speed(size: int = 768) -> MatmulSpeed:
    """Measure the CPU's speed of matrix products in both precisions (about 0.1 s). The best of five counts."""
    import torch

    def best(dtype: Any) -> float:
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        seconds = []
        for _ in range(6):  # the first one warms up
            start = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / max(min(seconds[1:]), 1e-9) / 1e9

    return MatmulSpeed(best(torch.bfloat16), best(torch.float32))


def _threads() -> Diagnosis:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    shown = ", ".join(f"{name}={value}" for name, value in settings.items() if value)
    text = f"{cores} cores" + (f"; {shown}" if shown else "")
    busy = os.getloadavg()[0]
    if busy > 1.5 * cores:
        return Diagnosis(
            "threads", text, Level.NOTE, f"the machine is busy (load {busy:.1f}): what is measured here is too slow"
        )
    if (settings["OMP_WAIT_POLICY"] or "").lower() == "active":
        return Diagnosis(
            "threads", text, Level.NOTE, "OMP_WAIT_POLICY=passive keeps waiting threads from slowing others down"
        )
    return Diagnosis("threads", text)


def _memory() -> Diagnosis:
    from arpo.assembly.machine_memory import free_memory

    free_bytes = free_memory()
    if free_bytes is None:
        return Diagnosis(
            "memory",
            "how much is free cannot be read here",
            Level.NOTE,
            f"the quickstart takes {NEEDED_MEMORY_GB:g} GB",
        )
    free = free_bytes / 2**30
    text = f"{free:.1f} GB free"
    if free < NEEDED_MEMORY_GB:
        advice = f"the quickstart takes about {NEEDED_MEMORY_GB:g} GB; less: train.token_budget=1024 engine.memory_gb=1"
        return Diagnosis("memory", text, Level.PROBLEM, advice)
    return Diagnosis("memory", text)


def _disk() -> Iterator[Diagnosis]:
    from arpo.models.sources import cache_folder

    for what, folder in (("disk, cache", cache_folder()), ("disk, here", Path.cwd())):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**30
        writable = os.access(there, os.W_OK)
        text = f"{free:.1f} GB free in {folder}"
        if not writable:
            yield Diagnosis(what, f"{folder} cannot be written", Level.PROBLEM, "ARPO_CACHE names another cache folder")
        elif free < NEEDED_DISK_GB:
            yield Diagnosis(what, text, Level.NOTE, f"the quickstart takes about {NEEDED_DISK_GB:g} GB")
        else:
            yield Diagnosis(what, text)


def _versions() -> Iterator[Diagnosis]:
    """Compare installed with required and tested versions, one line for each."""
    needed = {}
    try:
        for line in metadata.requires("arpo") or ():
            requirement = Requirement(line)
            needed[requirement.name.lower()] = requirement.specifier
    except metadata.PackageNotFoundError:
        yield Diagnosis("arpo", "runs from source, not installed", Level.NOTE, "make setup")
    for name, tested in TESTED.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Diagnosis(name, f"not installed (tested: {tested})", Level.PROBLEM, f"pip install {name}=={tested}")
            continue
        text = f"{installed} (tested: {tested})"
        specifier = needed.get(name)
        if specifier is not None and not specifier.contains(installed, prereleases=True):
            yield Diagnosis(name, text, Level.PROBLEM, f"needed is {name}{specifier}")
        elif installed.split("+")[0] != tested:
            yield Diagnosis(name, text, Level.NOTE, "another version than the tests ran with")
        else:
            yield Diagnosis(name, text)


def _vllm() -> Diagnosis:
    """Check vLLM in this environment, or in its own one, and whether the versions fit together."""
    from arpo.engines.vllm.versions import BESIDE, FITS, Environment
    from arpo.errors import ConfigError

    fitting = ", ".join(f"{name} {versions.removeprefix('==')}" for name, versions in FITS.items())
    here = Environment.here()
    if here.vllm is not None:
        text = f"{here.vllm} (go together: {fitting})"
        if (problem := here.problem()) is None:
            return Diagnosis("vllm", text)
        return Diagnosis("vllm", f"{text}; {problem[0]}", Level.PROBLEM, problem[1])
    if not BESIDE.exists():
        return Diagnosis("vllm", f"not here: the engine vllm needs {fitting} (docs/vllm.md)")
    try:
        beside = Environment.of(str(BESIDE))
        beside.check(str(BESIDE))
    except ConfigError as error:
        return Diagnosis("vllm", error.message, Level.NOTE, error.hint)
    return Diagnosis("vllm", f"{beside.vllm} in {BESIDE}: engine.vllm={{replicas: 1, python: {BESIDE}}}")


def _sandbox() -> Diagnosis:
    """Run two programs in the python tool: a sum, which must work, and reading a file, which must not."""
    from arpo.core.tree import CallStatus
    from arpo.errors import ConfigError
    from arpo.tasks import Task
    from arpo.tools import CallContext
    from arpo.tools.python import PythonTool

    task = Task(id="doctor", messages=({"role": "user", "content": ""},), answers=("",))
    context = CallContext(task=task, deadline_s=10.0, seed=0)
    try:
        tool = PythonTool()
    except ConfigError as error:
        return Diagnosis("python tool", error.message, Level.PROBLEM, error.hint)
    start = time.perf_counter()
    added = asyncio.run(tool({"code": "print(20 + 22)"}, context))
    milliseconds = (time.perf_counter() - start) * 1000
    looked = asyncio.run(tool({"code": f"print(open({str(Path(__file__))!r}).read())"}, context))
    tool.close()
    if added.text.strip() != "42":
        return Diagnosis(
            "python tool", f"does not work: {added.text[:200]}", Level.PROBLEM, "pip install pydantic-monty==1.4.0"
        )
    if looked.status is CallStatus.OK:
        return Diagnosis(
            "python tool", "can read files of this machine", Level.PROBLEM, "do not let a model write code here"
        )
    return Diagnosis("python tool", f"isolated: code cannot reach files; {milliseconds:.0f} ms for a first call")


def _levels() -> Diagnosis:
    """Enter every sandbox for CPython that this machine might allow, and run a program that looks for ways out."""
    from arpo.sandbox.levels import ADVICE, probe

    probed = probe()
    working = [each.level for each in probed if each.works]
    not_working = "; ".join(f"not {each.level}: {each.reason}" for each in probed if not each.works)
    if not working:
        return Diagnosis("python sandbox", f"none for CPython works here ({not_working})", Level.NOTE, ADVICE)
    text = f"level {working[0]} in force where a recipe says backend: sandbox (works here: {', '.join(working)})"
    if working[0] == "landlock":
        return Diagnosis(
            "python sandbox", text, Level.NOTE, f"a private view of the machine would be stronger. {not_working}"
        )
    return Diagnosis("python sandbox", text + (f"; {not_working}" if not_working else ""))


def _models() -> Iterator[Diagnosis]:
    from arpo.models.sources import cache_folder

    folder = cache_folder() / "models"
    there = sorted(path.name for path in folder.glob("*") if (path / "source.json").is_file())
    yield Diagnosis("model cache", f"{folder}: {', '.join(there) or 'empty (a first run fetches its model)'}")
    if not there and importlib.util.find_spec("pip") is None:
        yield Diagnosis(
            "pip",
            "this Python has none",
            Level.NOTE,
            f"the quickstart's model comes by pip: {sys.executable} -m ensurepip",
        )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield Diagnosis("hub", "HF_HUB_OFFLINE is set: only cached models and data of the Hub are found", Level.NOTE)


def _extras() -> Iterator[Diagnosis]:
    there = {name: importlib.util.find_spec(module) is not None for name, (module, _) in EXTRAS.items()}
    yield Diagnosis("extras", f"installed: {', '.join(name for name in there if there[name]) or 'none'}")
    missing = [f"[{name}] for {EXTRAS[name][1]}" for name in there if not there[name]]
    if missing:
        yield Diagnosis("", f"not installed: {'; '.join(missing)} ({install('NAME')})")
