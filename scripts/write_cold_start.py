"""Make the cold start of a recipe as `arpo sft` makes it, and bundle it with arpo.

    python scripts/write_cold_start.py quickstart

The recipe must train LoRA's matrices. They are stored in float16, with the key of the settings that they were made under, a
digest of the first traces' tokens (tests/train/test_bundled.py says when these no longer fit) and how this script was called. On
two cores without bfloat16 instructions that of the quickstart takes about ten minutes; one in the cache is taken from there.
"""

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from arpo.event_loop import complete
from arpo.recipe import load_recipe
from arpo.run import Run
from arpo.train import sft
from arpo.train.imitation import cold_start
from arpo.train.job import build_job
from arpo.train.sources import fetch
from arpo.train.starts import BUNDLED, Start, tokens_digest
from arpo.train.whole import whole_folder

TRACES = 16  # whose tokens are held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    name = parser.parse_args().recipe
    run = load_recipe(name)
    if run.model.lora is None or run.cold_start is None:
        raise SystemExit(f"{name}: a bundled cold start is one of LoRA's matrices: give the recipe model.lora and cold_start")
    start = Start(run, bundled=False)
    if start.model is None:
        unmeasured = run.model_copy(update={"data": run.data.model_copy(update={"test": None})})
        shutil.rmtree(cold_start(unmeasured))
    made = start.model
    assert made is not None
    about = {
        "recipe": name,
        "command": f"python scripts/write_cold_start.py {name}",
        "seed": run.cold_start.seed,
        "key": start.key,
        "tokens": complete(first_tokens(run)),
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


async def first_tokens(run: Run) -> str:
    """The digest of what the recipe makes of its first traces today."""
    assert run.cold_start is not None
    job = build_job(run, fetch(run.model.source))
    try:
        traces = sft.read_traces(run.cold_start, run.data.train)[:TRACES]
        return tokens_digest(await sft.demonstrations(job.agent, traces, run.rollout, run.cold_start.seed))
    finally:
        await job.agent.engine.close()


if __name__ == "__main__":
    main()
