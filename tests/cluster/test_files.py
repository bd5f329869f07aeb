"""The files and lines of docs/cluster.md are what their programs read."""

import re
import shlex
import subprocess
from pathlib import Path

import yaml
from torch.distributed.run import get_args_parser

from arpo.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
FILES = ROOT / "examples" / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def overrides(line: str) -> list[str]:
    return [word for word in shlex.split(line) if re.fullmatch(r"[a-z_.]+=\S+", word)]


def test_the_job_of_kuberay_has_a_head_and_workers_whose_gpus_are_those_of_the_command() -> None:
    job = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    run = load_recipe("quickstart", overrides(job["spec"]["entrypoint"]))
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert run.cluster.ranks and run.cluster.ranks <= workers["replicas"] * gpus
    for template in (cluster["headGroupSpec"]["template"], workers["template"]):
        (container,) = template["spec"]["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}
    assert cluster["rayVersion"] in (ROOT / "constraints.txt").read_text()


def test_the_slurm_script_is_bash() -> None:
    script = FILES / "slurm.sh"
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_torchrun_reads_the_lines_of_the_page() -> None:
    lines = re.findall(r"^    torchrun (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        options = get_args_parser().parse_args(shlex.split(line))
        assert options.module and [options.training_script, *options.training_script_args] == [
            "arpo",
            "train",
            "RECIPE",
        ]
