"""Run folders, recipes and models that somebody else made: a named error, soon, and no more than 1 GiB."""

import json
import os
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arpo.core.record import decode
from arpo.display.terminal import Console
from arpo.errors import CheckpointError, ConfigError, FormatError
from arpo.evaluation.comparison_tables import compare
from arpo.files import cut_unfinished_line, open_to_append, read_json, read_json_lines
from arpo.foreign import loads, open_file
from arpo.learner.optimizer import load_optimizer
from arpo.models.loading import LoraSettings, check_files, refuse_code, with_lora
from arpo.models.sources import checked
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.fingerprint import check_resumption
from arpo.runs.folder import RunFolder, read_history
from arpo.tasks.data import file_rows
from arpo.tools.usage import read_usage
from arpo.yaml_positions import parse
from tiny_models import tiny_model

GIB = 1 << 30


def run_folder(path: Path) -> Path:
    (path / "events").mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: a\n")
    return path


def frame(text: bytes, length: int | None = None) -> bytes:
    body = zlib.compress(text, 1)
    return struct.pack("<4sII", b"ARPO", len(body) if length is None else length, zlib.crc32(body)) + body


BOMBS = {
    "zeros": lambda: frame(b'{"schema":2,"task":"' + b"0" * (270 << 20)),
    "dictionaries": lambda: frame(b'{"schema":2,"task":"a","turns":[' + b"{}," * 5_000_000),
    "nested": lambda: frame(b"[" * 1_000_000),
    "long": lambda: frame(b"{}", length=4_000_000_000),
    "digits": lambda: frame(b'{"schema":' + b"9" * 100_000 + b"}"),
    "null task": lambda: frame(b'{"schema":2,"task":null,"step":1,"prompt":""}'),
    "huge step": lambda: frame(b'{"schema":2,"task":"a","step":' + b"9" * 400 + b',"prompt":""}'),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_frame_that_would_take_all_memory_is_named_with_its_file_and_place(tmp_path: Path, name: str) -> None:
    run, before = run_folder(tmp_path / "run"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = run / "events" / "step-000001.frames"
    path.write_bytes(BOMBS[name]())
    with pytest.raises(FormatError, match=r"step-000001\.frames: frame 0 at byte 0"):
        list(RunFolder(run).trees(1))
    for read in (decode, lambda stream: decode(stream).tasks()):
        try:
            with path.open("rb") as stream:
                list(read(stream))
        except FormatError as error:
            assert "byte 0" in str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < GIB


def odd_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_what_is_no_file_or_a_giant_one_is_named(tmp_path: Path, kind: str) -> None:
    run = run_folder(tmp_path / "run")
    odd_file(run / "metrics.jsonl", kind)
    odd_file(run / "summary.json", kind)
    odd_file(run / "events" / "step-000001.frames", kind)
    folder = RunFolder(run)
    for read, name in (
        (folder.metrics, "metrics.jsonl"),
        (folder.summary, "summary.json"),
        (lambda: list(folder.trees(1)), "step-000001.frames"),
    ):
        with pytest.raises((FormatError, OSError), match=name.replace(".", r"\.")):
            read()
    odd_file(run / "recipe.yaml", kind)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(run / "recipe.yaml")
    (tmp_path / "model").mkdir()
    odd_file(tmp_path / "model" / "tokenizer.json", kind)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        check_files(tmp_path / "model")


@pytest.mark.parametrize("starts", ["0", "null", "{}", '"x"', "[1]", "[[]]"])
def test_starts_that_are_none_are_named(tmp_path: Path, starts: str) -> None:
    run = run_folder(tmp_path / "run")
    (run / "environment.json").write_text(starts)
    with pytest.raises(FormatError, match=r"environment\.json is not a list of objects"):
        RunFolder(run).environment()
    with pytest.raises(FormatError, match=r"environment\.json is not a list of objects"):
        RunFolder.create(run, "name: a\n", {}, resume=True)


NUMBERS = '{"mean": 1, "low": null, "high": NaN, "n": '


@pytest.mark.parametrize(
    "content",
    [
        *('{"seconds": {"training": "x"}}', '{"seconds": []}', '{"status": 1}', '{"steps": null}', '{"steps": 1e400}'),
        *(f'{{"accuracy_after": {NUMBERS}null}}}}', '{"accuracy_before": 0.5}', "[]", "0"),
        *('{"gates": [{"what": 1}]}', '{"gates": {}}', '{"gates": [0]}', '{"unplanned_cold_start": 3}'),
    ],
)
def test_a_summary_of_other_values_is_named(tmp_path: Path, content: str) -> None:
    run = run_folder(tmp_path / "run")
    (run / "summary.json").write_text(f'{{"accuracy_after": {NUMBERS}3}}}}')
    assert RunFolder(run).summary()["accuracy_after"]["n"] == 3
    (run / "summary.json").write_text(content)
    with pytest.raises(FormatError, match=r"summary\.json"):
        RunFolder(run).summary()


@pytest.mark.parametrize(
    "tool",
    [
        "3",
        '{"asked": "x"}',
        '{"cost": 1e400}',
        '{"faults": {"a": []}}',
        '{"seconds": {"x": 1}}',
        '{"seconds": {"9999": 1}}',
    ],
)
def test_usage_of_other_values_is_named(tmp_path: Path, tool: str) -> None:
    (tmp_path / "calls.json").write_text(f'{{"search": {tool}}}')
    with pytest.raises(FormatError, match=r"calls\.json: search"):
        read_usage(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", '{"parts": [], "accepted": []}', '{"parts": {}, "accepted": 3}'),
        *('{"parts": {"method": 1}, "accepted": []}', '{"parts": {"data": {"data.train": [["a"]]}}, "accepted": []}'),
        '{"parts": {"data": {"data.train": {"a": 1}}}, "accepted": []}',
    ],
)
def test_fingerprints_of_other_values_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "fingerprints.json").write_text(content)
    with pytest.raises(FormatError, match=r"fingerprints\.json"):
        check_resumption(tmp_path, {}, ())


def optimizer_state(folder: Path, slots: tuple[str, ...] = ("step", "exp_avg", "exp_avg_sq")) -> Callable[[], int]:
    """The state of an optimizer in `folder`, and what reads it."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([weight])
    (folder / "optimizer.json").write_text('{"updates": 3}')
    tensors = {f"w.{slot}": torch.zeros(()) if slot == "step" else torch.zeros(2, 3) for slot in slots}
    save_file(tensors, folder / "optimizer.safetensors")
    return lambda: load_optimizer(folder, optimizer, {"w": weight})


def test_the_state_of_an_optimizer_is_read_or_named(tmp_path: Path) -> None:
    reads = optimizer_state(tmp_path)
    assert reads() == 3
    for number in ("-1", "1e400", '"3"', "9" * 30, "[]", "NaN"):
        (tmp_path / "optimizer.json").write_text(f'{{"updates": {number}}}')
        with pytest.raises(CheckpointError, match=r"optimizer\.json"):
            reads()
    for slots in (("step", "exp_avg"), ("step", "exp_avg", "exp_avg_sq", "more")):
        with pytest.raises(CheckpointError, match="optimizer state is not of"):
            optimizer_state(tmp_path, slots)()
    optimizer_state(tmp_path)
    file = tmp_path / "optimizer.safetensors"
    for content in (b"", file.read_bytes()[:-3], b"x" * 99, b"\xff" * 8 + file.read_bytes()[8:]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"optimizer\.safetensors cannot be read"):
            reads()
    odd_file(file, "pipe")
    with pytest.raises(FormatError, match=r"optimizer\.safetensors is not a file"):
        reads()


def test_a_checkpoint_whose_weights_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    def newest() -> list[str]:
        return checkpoint.newest(tmp_path)[1]

    model = tmp_path / "step-000001" / "model"
    model.mkdir(parents=True)
    (model.parent / "MANIFEST.json").write_text("{}")  # its maker lists what he likes
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, model / "model.safetensors")
    assert re.search("model.safetensors cannot be read", newest()[0])
    odd_file(model / "model.safetensors", "pipe")
    assert re.search("is not a file", newest()[0])


def test_a_recipe_whose_aliases_expand_without_end_is_named_by_whoever_reads_it(tmp_path: Path) -> None:
    run, deep = (
        run_folder(tmp_path / "run"),
        "\n".join(f"k{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60)),
    )
    (run / "recipe.yaml").write_text(f"k0: &a0 {{z: 1}}\n{deep}\n")
    for reads in (RunFolder(run).recipe_values, lambda: compare([run, run], console=Console(quiet=True))):
        with pytest.raises(ConfigError, match=r"recipe\.yaml.* expands to too many values"):
            reads()


@pytest.mark.parametrize("step", ["NaN", "null", '"1"', "1e400", "-1", "9" * 30, "[1]", "true"])
def test_a_step_that_is_none_is_named(tmp_path: Path, step: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{{"step": {step}}}\n')
    with pytest.raises(FormatError, match=r"metrics\.jsonl holds the step"):
        read_history(tmp_path)


def test_a_metric_that_no_plot_can_show_is_named(tmp_path: Path) -> None:
    for value in ("1e400", "9" * 30, "-1e300"):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 7, "reward/std": {value}}}\n')
        with pytest.raises(FormatError, match=r"metrics\.jsonl, step 7 holds .* as 'reward/std'"):
            read_history(tmp_path)


def test_a_run_writes_to_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    for kind in ("link", "pipe", "folder", "device"):
        path = tmp_path / kind
        path.symlink_to(tmp_path / "victim") if kind == "link" else odd_file(path, kind)
        with pytest.raises(FormatError, match=kind if kind in ("link", "pipe") else "only a file|not a file"):
            open_to_append(path)
    with open_to_append(tmp_path / "own") as file:
        file.write(b"a\nb")
        cut_unfinished_line(file)
        file.write(b"c\n")
    assert (tmp_path / "own").read_bytes() == b"a\nc\n" and not (tmp_path / "victim").exists()


def test_events_whose_name_is_no_step_are_left_out(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for name in ("9" * 40, "-1", "x", "000003"):
        (run / "events" / f"step-{name}.frames").touch()
    assert RunFolder(run).event_steps() == [3]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_data_of_others_gives_rows_or_an_error_that_names_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    for kind in ("pipe", "device", "folder", "sparse"):
        odd_file(path, kind)
        with pytest.raises((FormatError, ConfigError), match=r"data\.|is a folder|no such file"):
            list(file_rows(path))
        path.rmdir() if path.is_dir() else path.unlink()
    for content in (b"x" * 59 + "é".encode(), b"[" * 100_000, b"\0" * 99, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"data\."):
            assert list(file_rows(path)) == []
            raise FormatError(str(path))  # no rows are right, too


def test_json_with_too_many_values_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for text in (b"[" + b"[]," * 5_000_000, b"[" * 100_000, b"9" * 10_000):
        with pytest.raises(ValueError, match=r"values|deeply|digits|integer"):
            loads(text)
    (tmp_path / "f.json").write_bytes(b"[" * 100_000)
    with pytest.raises(FormatError, match=r"f\.json"):
        read_json(tmp_path / "f.json")
    (tmp_path / "f.jsonl").write_bytes(b" " * (64 << 20))
    with pytest.raises(FormatError, match="line 1 has more than"):
        list(read_json_lines(tmp_path / "f.jsonl"))
    assert open_file(tmp_path / "f.json").read(2) == b"[["


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_experts": 10**12}},
        {"vocab_size": 10**18},
        {"layers": [{"num_heads": 10**400}]},
    ],
)
def test_a_model_of_a_billion_layers_is_refused_with_the_key(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json: .*(num_|vocab_size)"):
        check_files(tmp_path)


def test_a_model_of_more_layers_than_its_weights_are_of_is_refused_before_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 99999}')
    header = b'{"model.layers.29.mlp.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers is more than .* which are of 30 layers"):
        check_files(tmp_path)
    odd_file(tmp_path / "model.safetensors", "pipe")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a file"):
        check_files(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "XLORA"},
        {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"}},
        {"megatron_config": {"a": 1}},
        {"layer_replication": [[0, 10**9]]},
        {"target_modules": "(a+)+$"},
        {"r": 10**9},
        {"r": None},
        {"lora_alpha": "x"},
        {"lora_dropout": 7},
        {"task_type": "BAD"},
    ],
)
def test_an_adapter_that_is_no_plain_one_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    lora = LoraSettings(rank=2)
    with_lora(tiny_model("llama"), lora).save_pretrained(tmp_path)
    with_lora(tiny_model("llama"), lora, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ConfigError, match=r"^model\.lora: "):
        with_lora(tiny_model("llama"), lora, tmp_path)


@pytest.mark.parametrize("names", ['{"a": 1, "b": "c"}', '{"a": []}', '{"a": null}', "[]", '"a"', '{"a": "../../x"}'])
def test_an_odd_index_of_weights_is_an_error_with_its_name(tmp_path: Path, names: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {names}}}')
    with pytest.raises(ConfigError, match=r"is not an index of safetensors|^model\.source: x not found in"):
        checked(tmp_path)


def test_code_that_a_model_brings_is_refused_with_the_key_that_allows_it() -> None:
    with pytest.raises(ConfigError, match=r"set model\.trust_remote_code: true"):
        refuse_code(ValueError("... please set the option `trust_remote_code=True` ..."), "org/model")
    refuse_code(ValueError("another"), "org/model")


def test_a_recipe_shows_nothing_of_a_foreign_file(tmp_path: Path) -> None:
    secret = "hunter2-in-a-file"
    for number, content in enumerate(
        (
            secret,
            f"- {secret}",
            f"user: {secret}\npassword: {secret}\n",
            f"{secret}: [",
            f"a: {{{secret}",
            f"\t{secret}",
            f"name: me\ntoken: {secret}\n",
            f"environment: {{KEY: {secret}}}\n",
            f"data: {{password: {secret}}}\n",
            f"seed: {secret}\n",
        )
    ):
        foreign, recipe = tmp_path / f"foreign{number}", tmp_path / f"recipe{number}.yaml"
        foreign.write_text(content)
        recipe.write_text(f"base: {foreign}\n")
        with pytest.raises(ConfigError) as caught:
            load_recipe(recipe)
        assert secret not in str(caught.value) and "foreign" in str(caught.value), content


def test_a_recipe_of_many_keys_is_laid_over_another_one_at_once() -> None:
    below, above = (
        parse("a: {" + ", ".join(f"k{number}: {name}" for number in numbers) + "}\nb: {c: 1}\n", name)
        for name, numbers in (("x", range(6_000)), ("y", range(3_000, 9_000)))
    )
    both = above.over(below, {})
    assert both.value["a"] == {f"k{number}": "x" if number < 3_000 else "y" for number in range(9_000)}
    assert (both.place(("a", "k1")), both.place(("a", "k4000")), both.place(("b", "c"))) == ("x:1", "y:1", "y:2")


def test_a_value_in_a_message_is_short_whatever_it_is(tmp_path: Path) -> None:
    assert len(str(ConfigError("wrong", value="x" * 1_000_000))) < 1_000
    assert "cannot be shown" in str(ConfigError("wrong", value=10**10_000))
    (tmp_path / "many.yaml").write_text("".join(f"key{number}: 1\n" for number in range(300)))
    with pytest.raises(ConfigError, match=r"many\.yaml:1: key0[^$]*\nand 251 more$"):
        load_recipe(tmp_path / "many.yaml")
    for number in ("9" * 10_000, f"0x{'f' * 10_000}"):
        (tmp_path / "r.yaml").write_text(f"rollout: {{leaves: {number}}}\n")
        with pytest.raises(ConfigError, match=r"r\.yaml"):
            load_recipe(tmp_path / "r.yaml")
