"""Exports a run's model as a Hugging Face folder: weights, tokenizer and a model card.

Knows folders, LoRA and the Hub. Refuses to know how the model was trained: the card reads its facts from the run.
"""

from pathlib import Path

from arpo.assembly.resolve import resolve_model
from arpo.errors import ConfigError, first_line
from arpo.export.card import model_card, table_of_run
from arpo.files import expanded
from arpo.learner.lora import plain_model
from arpo.models.loading import ModelConfig, load_model
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig, plain
from arpo.runs.folder import RunFolder
from arpo.yaml_positions import dump

RECIPE = "recipe.yaml"


def export(name: str | Path, out: Path | str, *, push: str | None = None) -> Path:
    """Write the model of a run (the best checkpoint if it validated, else the last) or of one checkpoint to the folder
    `out`.

    `AutoModelForCausalLM.from_pretrained(out)` loads it; LoRA is merged. The folder's recipe.yaml lets `arpo chat` and
    `arpo eval` use the same tools and prompt as training. `push` also uploads it to the Hub as `org/name`; a new
    repository is private. Raises ConfigError if `out` is not empty, if there is no such run, or if the Hub refuses.
    """
    found = resolve_model(str(name))
    target = empty_folder(Path(out))
    if push:
        check_push(push)
    write_model(found.run.model, found.weights, target)
    write_recipe(target, found.run)
    assert found.folder is not None and found.checkpoint is not None  # without a recipe the source is a run
    step = found.checkpoint.state.step
    results = table_of_run(RunFolder(found.folder).summary(), step)
    write_card(target, model_card(found.run, step=step, name=push or target.name, results=results))
    if push:
        push_to_hub(target, push)
    return target


def empty_folder(path: Path) -> Path:
    """`path`, if it is empty or missing. Raises ConfigError."""
    path = expanded(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError("this folder is not empty: nothing was written", where=str(path), hint="Name a new one")
    return path


def write_recipe(out: Path, run: RunConfig) -> None:
    """The recipe of the model's run with the model in `out` as its source. It sets tools, prompt and chat format."""
    model = run.model.model_copy(update={"source": ".", "lora": None})
    exported = run.model_copy(update={"model": model, "out": None, "cold_start": None})
    (out / RECIPE).write_text(dump(plain(exported)), encoding="utf-8")


def write_card(out: Path, card: str) -> None:
    (out / "README.md").write_text(card, encoding="utf-8")


def write_model(config: ModelConfig, weights: Path | None, out: Path) -> None:
    """Write weights (the source's without `weights`) and tokenizer, as float32 safetensors with merged LoRA."""
    exact = config.model_copy(update={"device": "cpu", "dtype": "float32", "gradient_checkpointing": False})
    if config.lora:  # adapters are added to weights in full, as vLLM adds them
        exact = exact.model_copy(update={"lora": config.lora.model_copy(update={"base": "full"})})
    model, tokenizer = load_model(fetch(config.source) if weights is None or config.lora else weights, exact, weights)
    try:
        out.mkdir(parents=True, exist_ok=True)
        plain_model(model).eval().save_pretrained(out)
        tokenizer.save_pretrained(out)
        for file in out.iterdir():  # safetensors writes 0600
            file.chmod(0o644)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror or error})", where=str(out)) from error


def check_push(name: str) -> None:
    """Check that this is a Hub id and that a user is logged in, before the long work. Raises ConfigError."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError("this is not a Hub id", where="--push", value=name, hint="Write org/name") from error
    if "/" not in name:
        raise ConfigError("a Hub id names its owner", where="--push", value=name, hint="Write org/name")
    if get_token() is None:
        raise ConfigError("nobody is logged in to the Hub", where="--push", hint="Run `hf auth login`, or set HF_TOKEN")


def push_to_hub(folder: Path, name: str) -> None:
    """Upload `folder`. Raises ConfigError. The folder stays unchanged."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # covers the HTTP client of every version

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(  # without the recipe, which names folders of this machine
            repo_id=name, folder_path=folder, commit_message="Exported by arpo", ignore_patterns=[RECIPE]
        )
    except (HTTPError, OSError) as error:
        hint = f"The model lies in {folder}: `hf upload {name} {folder}` tries again"
        raise ConfigError(
            f"the Hub did not take it ({first_line(error)})", where="--push", value=name, hint=hint
        ) from error
