"""Make the cold start of a recipe as `arpo sft` makes it, and bundle it with arpo.

    python scripts/write_cold_start.py quickstart

The recipe must train LoRA's matrices. They are stored in float16, with the key of the settings that they were made
under, a digest of the first traces' tokens (tests/sft/test_bundled_cold_start.py says when these no longer fit) and how
this script was called. On two cores without bfloat16 instructions that of the quickstart takes about ten minutes; one
in the cache is taken from there.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from arpo.assembly.components import build_setting, formats
from arpo.chat.config import build_chat
from arpo.engines.scripted import ScriptedEngine
from arpo.event_loop import run_sync
from arpo.models.sources import fetch
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.recipe.train import COLD_START_SEED
from arpo.rollout.agent import Agent
from arpo.runs.atomic import whole_folder
from arpo.sft.cache import BUNDLED, SFTCache, tokens_digest
from arpo.sft.stage import sft
from arpo.sft.traces import read_traces, traces_to_trees

TRACES = 16  # whose tokens are held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    name = parser.parse_args().recipe
    run = load_recipe(name)
    if run.model.lora is None or run.cold_start is None:
        raise SystemExit(
            f"{name}: a bundled cold start is one of LoRA's matrices: give the recipe model.lora and cold_start"
        )
    start = SFTCache(run, bundled=False)
    if start.model is None:
        unmeasured = run.model_copy(update={"data": run.data.model_copy(update={"test": None})})
        shutil.rmtree(sft(unmeasured))
    made = start.model
    assert made is not None
    about = {
        "recipe": name,
        "command": f"python scripts/write_cold_start.py {name}",
        "key": start.key,
        "tokens": run_sync(first_tokens(run)),
    }
    with whole_folder(BUNDLED / name) as folder:
        state = load_file(made / "adapter_model.safetensors")
        save_file({key: tensor.half() for key, tensor in state.items()}, folder / "adapter_model.safetensors")
        adapters = json.loads((made / "adapter_config.json").read_text())
        adapters["base_model_name_or_path"] = None  # no path of this machine
        (folder / "adapter_config.json").write_text(json.dumps(adapters, indent=2, sort_keys=True) + "\n")
        (folder / "cold_start.json").write_text(json.dumps(about, indent=2) + "\n")
    size = sum(file.stat().st_size for file in (BUNDLED / name).iterdir())
    print(f"{(BUNDLED / name).relative_to(Path.cwd())}: {size / 1e6:.1f} MB")


async def first_tokens(run: RunConfig) -> str:
    """The digest of what the recipe makes of its first traces today. Traces are written already: no model is loaded."""
    assert run.cold_start is not None
    setting = build_setting(run)
    tokenizer = AutoTokenizer.from_pretrained(fetch(run.model.source), local_files_only=True, trust_remote_code=False)
    agent = Agent(
        engine=ScriptedEngine(lambda *_: ""),
        tools=setting.tools,
        format=formats(partial(build_chat, run.chat, tokenizer)),
        vocab_size=len(tokenizer),
        tool_gateway=setting.tool_gateway,
    )
    traces = read_traces(run.cold_start, run.data.train)[:TRACES]
    return tokens_digest(await traces_to_trees(agent, traces, run.rollout, COLD_START_SEED))


if __name__ == "__main__":
    main()
