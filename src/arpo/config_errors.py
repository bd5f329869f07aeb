"""Turns pydantic's errors into a ConfigError that a person can act on: file, line, key, value, and the nearest valid
key or the expected type.

Knows the keys of configuration models (pydantic models and dataclasses). Refuses to know what any key means.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from arpo.errors import ConfigError, nearest, shown
from arpo.yaml_positions import Elsewhere, Keys, Located, lookup, show

GROUP = "a group of keys"
_SHOULD_BE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "model": GROUP,
    "dataclass": GROUP,
    "dict": GROUP,
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# Keys of recipes written before 0.1.0, and their names now; CHANGELOG.md lists them too.
RENAMED = {
    "engine.vllm.weights_folder": "engine.vllm.weights",
    "loss.importance_cap": "loss.tis_cap",
    "rollout.reward_deadline_s": "rollout.deadline_s",
    "rollout.tool_deadline_s": "rollout.deadline_s",
    "train.dynamic_sampling.max_batches": "train.dynamic_sampling",
    "train.early_stop.patience": "train.early_stop",
}
# Keys of such recipes that are gone, and what to do.
REMOVED = {
    "chat.no_calls_left": "the text after the last call is fixed: leave it out",
    "chat.require_boxed": "write `require: [think, boxed]`",
    "chat.require_think": "write `require: [think]`, or `require: []` for turns without a thought",
    "cold_start.schedule": "the rate of a cold start always falls to 0 as a cosine: leave it out",
    "cold_start.seed": "cold starts no longer have a seed of their own: leave it out",
    "cold_start.warmup": "the rate of a cold start always rises over the first tenth of the updates: leave it out",
    "data.test.families": "write `options: {families: ...}`",
    "data.test.seed": "a number in `shuffle` keys another order",
    "data.train.families": "write `options: {families: ...}`",
    "data.train.seed": "a number in `shuffle` keys another order",
    "data.validation.families": "write `options: {families: ...}`",
    "data.validation.seed": "a number in `shuffle` keys another order",
    "engine.endpoint.length_key": "`options: {max_tokens: null}` sends the limit as max_completion_tokens",
    "engine.endpoint.omit": "`options: {seed: null}` leaves a field out",
    "engine.endpoint.price_cached": "write `prices: {cached: ...}`",
    "engine.endpoint.price_in": "write `prices: {prompt: ...}`",
    "engine.endpoint.price_out": "write `prices: {completion: ...}`",
    "engine.vllm.mode": "leave it out: servers that the run starts are counted by `replicas`, others named by `urls`",
    "engine.vllm.devices": "write `replicas: ['1', '2']`",
    "engine.vllm.key_env": "servers at urls get the key in the environment variable ARPO_VLLM_KEY: leave it out",
    "engine.vllm.patience_s": "a request always waits 120 s for a server: leave it out",
    "engine.vllm.start_s": "a server always has 900 s to start: leave it out",
    "engine.vllm.transfer_s": "a server always has 300 s for new weights: leave it out",
    "evaluation.judge.length_key": "`options: {max_tokens: null}` sends the limit as max_completion_tokens",
    "evaluation.judge.max_tokens": "write it into `options`",
    "evaluation.judge.omit": "`options: {seed: null}` leaves a field out",
    "evaluation.judge.price_cached": "write `prices: {cached: ...}`",
    "evaluation.judge.price_in": "write `prices: {prompt: ...}`",
    "evaluation.judge.price_out": "write `prices: {completion: ...}`",
    "evaluation.judge.structured": "write `options: {response_format: {type: json_object}}`, or null for none",
    "evaluation.k": "pass@k is reported for the number of samples and the powers of 2 below it: leave it out",
    "loss.constant_length": "write the length itself: `aggregation: 4096`",
    "optim.eps": "AdamW's denominator is always 1e-8: leave it out",
    "plan.sampled_tokens_per_s": "write `plan: made`, or `plan: auto` to measure the machine again",
    "plan.trained_tokens_per_s": "write `plan: made`, or `plan: auto` to measure the machine again",
    "reward.maths_s": "a pair of formulas may always take 2 s of processor time: leave it out",
    "rollout.top_p": "training samples from the whole distribution; evaluation.top_p is for evaluations",
    "tools.cache.empty_days": "a result where nothing was found is fresh for a day at most: leave it out",
    "tools.limits.error_window": "the error rate is always taken over a tool's last 200 calls: leave it out",
    "tools.offered.*.cache.days": "write the days themselves, such as `cache: 7`",
    "tools.offered.*.cache.empty_days": "a result where nothing was found is fresh for a day at most: leave it out",
    "tools.offered.*.cache.keep": "write `cache: true` or `cache: false`",
    "train.early_stop.min_gain": "any better accuracy counts as a new best: leave it out",
}
CONFLICT = "conflict"  # the type of our own pydantic error
MOST_MISTAKES = 50  # each is compared with all keys that there are
# the error does not show the value
NO_SECRETS = "a recipe is written to the run's folder: keep keys in the environment and name the variable"


def config_error(error: ValidationError, recipe: Located, model: type) -> ConfigError:
    """The mistakes that pydantic reports in `recipe`, at most `MOST_MISTAKES`, as one ConfigError: the first with its
    place, the others after it."""
    by_keys: dict[Keys, list[str]] = {}
    details = error.errors(include_url=False)
    for detail in details[:MOST_MISTAKES]:
        keys = _keys(detail, recipe.value)
        if detail["type"] == CONFLICT:
            keys = _last_written([(*keys, *key.split(".")) for key in detail["ctx"]["keys"]], recipe)
        message = _message(detail, keys, recipe.value, model)
        if message not in by_keys.setdefault(keys, []):
            by_keys[keys].append(message)
    mistakes = [(keys, ", or ".join(messages)) for keys, messages in by_keys.items()]
    (first, message), *others = mistakes
    rest = "".join(f"\n{where(recipe, keys)}: {_with_value(message, keys, recipe)}" for keys, message in others)
    if len(details) > MOST_MISTAKES:
        rest += f"\nand {len(details) - MOST_MISTAKES:,} more"
    return ConfigError(_with_value(message, first, recipe) + rest, where=where(recipe, first))


def where(recipe: Located, keys: Keys) -> str:
    """`recipes/a.yaml:12: rollout.roots`."""
    return ": ".join(part for part in (recipe.place(keys), show(keys)) if part)


def _with_value(message: str, keys: Keys, recipe: Located) -> str:
    value = lookup(recipe.value, keys)
    elsewhere = isinstance(recipe.place(keys), Elsewhere)
    if value is None or isinstance(value, Mapping) or message == NO_SECRETS or elsewhere:
        return message
    return f"{message} (got {shown(value, 80)})"


def _keys(detail: Mapping[str, Any], value: Any) -> Keys:
    """The path of an error in the recipe: pydantic's path without the names of the union members that it tried."""
    keys: list[str | int] = []
    last = detail["loc"][-1:] if detail["type"] in ("missing", *_UNKNOWN) else ()
    for part in detail["loc"]:
        entries = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
        if part in entries:
            value = value[part]
            keys.append(part)
    if last and keys[-1:] != list(last):
        keys += last
    return tuple(keys)


def _last_written(conflicting: Sequence[Keys], recipe: Located) -> Keys:
    """The conflicting key to point at: the first one that the topmost file sets."""
    written = [keys for keys in conflicting if keys in recipe.places]
    order = {keys: number for number, keys in enumerate(recipe.places)}  # a file's keys follow those that it overrides
    if not written:
        return conflicting[0]
    top = _file(recipe.places[max(written, key=order.__getitem__)])
    return next(keys for keys in written if _file(recipe.places[keys]) == top)


def _file(place: str) -> str:
    """`a.yaml` of `a.yaml:12`; the command line has no line numbers."""
    return place.rpartition(":")[0] or place


def _message(detail: Mapping[str, Any], keys: Keys, value: dict[str, Any], model: type) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    inside = lookup(value, keys)
    for key in inside if isinstance(inside, Mapping) and kind not in _UNKNOWN else ():
        if retired := _retired((*keys, str(key))):
            return f"there is no key {str(key)!r} here; {retired}"
    if kind in _UNKNOWN:
        return f"there is no key {str(keys[-1])!r} here; {_hint(keys, value, model)}"
    if kind == "missing":
        return "is missing"
    if kind in ("literal_error", "enum"):
        return _choice(detail["input"], str(context["expected"]).replace(" or ", ", ").split(", "))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, tags = context.get("tag"), context.get("expected_tags")
        return _choice(tag, str(tags).split(", ")) if tags else f"should name its {context.get('discriminator')}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "int_from_float":
        return "should be a whole number"
    stem, _, end = kind.rpartition("_")
    if end in ("type", "parsing", "attributes") or kind.startswith(("model_", "dataclass_")):
        for prefix, expected in _SHOULD_BE.items():
            if stem.startswith(prefix):
                return f"should be {expected}{_which(keys, value, model) if expected == GROUP else ''}"
    return (
        str(detail["msg"])
        .replace("Input should", "should")
        .replace("String should", "should")
        .replace("Value error, ", "")
    )


def _retired(keys: Keys) -> str:
    """What to write instead of a key of an older recipe; "" for any other key. `*` stands for an entry of a list."""
    path = ".".join("*" if isinstance(key, int) else key for key in keys)
    return f"it is called {RENAMED[path]!r} now" if path in RENAMED else REMOVED.get(path, "")


def _choice(value: object, quoted: Iterable[str]) -> str:
    choices = [choice.strip("'\"") for choice in quoted]
    if isinstance(value, str):
        return f"there is no {value!r} here; {nearest(value, choices)}"
    return f"should be one of: {', '.join(choices)}"


# --- the keys of a model


def _hint(keys: Keys, value: dict[str, Any], model: type) -> str:
    """The new name of a renamed key, else the nearest key of the same group, else the same key in another group."""
    if retired := _retired(keys):
        return retired
    here, word = keys_at(model, keys[:-1], value), str(keys[-1])
    if word in here or keys in all_keys(model):
        return f"it belongs to another kind of {show(keys[:-1])} than the one that this recipe names (docs/recipes.md)"
    if not difflib.get_close_matches(word, here, n=1, cutoff=0.75):
        elsewhere = [show(path) for path in all_keys(model) if path[-1] == word]
        if elsewhere:
            return f"did you mean {' or '.join(repr(path) for path in elsewhere[:3])}?"
    return nearest(word, here) if here else "this place takes no keys"


def _which(keys: Keys, value: dict[str, Any], model: type) -> str:
    """The keys of the expected group: ": source, device, ..."."""
    here = [str(path[-1]) for path in all_keys(model) if path[:-1] == keys and path[-1] in keys_at(model, keys, value)]
    return f": {', '.join(here)}" if here else ""


def keys_at(model: type, keys: Keys, value: Any = None) -> set[str]:
    """The keys that the group at `keys` may hold. `value` is the whole recipe; it selects among the members of a
    union."""
    groups, at = [model], value
    for key in keys:
        groups = _narrowed(groups, at)
        at = lookup(at, (key,))
        # a number is the index of a list entry; all entries have the list's type
        groups = groups if isinstance(key, int) else [g for group in groups for g in _groups(_fields(group).get(key))]
    return {name for group in _narrowed(groups, at) for name in _fields(group)}


def all_keys(model: type, at: Keys = ()) -> list[Keys]:
    """Every key of `model` and of the groups inside it."""
    keys: list[Keys] = []
    for name, annotation in _fields(model).items():
        keys.append((*at, name))
        for group in _groups(annotation):
            keys += all_keys(group, (*at, name))
    return list(dict.fromkeys(keys))


def _narrowed(groups: Sequence[type], value: Any) -> list[type]:
    """The members of a union whose discriminators (`rule: paper`) match `value`; all members if none match."""
    if len(groups) < 2 or not isinstance(value, Mapping):
        return list(groups)

    def fits(group: type) -> bool:
        fixed = {
            name: typing.get_args(kind) for name, kind in _fields(group).items() if typing.get_origin(kind) is Literal
        }
        return all(value.get(name, words[0]) in words for name, words in fixed.items() if len(words) == 1)

    return [group for group in groups if fits(group)] or list(groups)


def _fields(group: type) -> dict[str, Any]:
    if issubclass(group, BaseModel):
        return {name: field.annotation for name, field in group.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(group)} if dataclasses.is_dataclass(group) else {}


def _groups(annotation: Any) -> list[type]:
    """The models and dataclasses that an annotation names, inside unions, lists and Annotated."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation) else []
    if typing.get_origin(annotation) is Literal:
        return []
    return [group for part in typing.get_args(annotation) for group in _groups(part)]
