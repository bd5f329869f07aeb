"""Questions of one set that occur in another are found, by a fast way that agrees with a slow one; others are not."""

import math
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.answer_text import tokens
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.tasks import Task, atlas, leakage
from arpo.tasks.benchmarks import benchmark
from arpo.tasks.data import DataConfig, load
from arpo.tasks.leakage import FILLERS, MIN_PAIRS, MIN_REVERSE, MIN_SHARE, QUOTE_WORDS, SAME_WORDS, leaks
from arpo.training.preflight import prepare
from tiny_project import TinyProject

DATA = Path(__file__).parents[3] / "shared" / "data"
LONG = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning "
    "and bakes muffins for her friends daily."
)


def task(text: str, name: str = "t", **metadata: object) -> Task:
    return Task(id=name, messages=({"role": "user", "content": text},), answers=("1",), metadata=metadata)


def test_the_same_words_are_the_same_question():
    found = leaks(
        [task("Who wrote Faust?"), task("Who wrote it?")], [task("  who wrote FAUST", "train/7"), task("Why?")]
    )
    assert [(leak.question, leak.found_in, leak.same) for leak in found.leaks] == [
        ("Who wrote Faust?", "train/7", True)
    ]
    assert "1 of 2 questions (1 the same)" in str(found) and "train/7" in str(found)


COPIES = {
    "a number changed": LONG.replace("16", "17") + " How many does she sell?",
    "other punctuation and case": LONG.upper().replace(".", " --"),
    "another order of sentences": " ".join(reversed(LONG.split(". "))),
    "a few words added": f"Here is a riddle, please solve it: {LONG} Think it over.",
    "quoted in a long text": f"{LONG} " + " ".join(f"word{number}" for number in range(100)),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("others", [0, 200], ids=["alone", "among others"])
def test_a_changed_copy_is_near(copy, others):
    farmer = "A farmer has {} ducks and each eats {} eggs: how many for everyone?"
    among = [task(farmer.format(number, number % 7)) for number in range(others)]
    (leak,) = leaks([task(LONG)], [*among, task(copy, "train/1")]).leaks
    assert leak.found_in == "train/1" and leak.share >= MIN_SHARE


def test_a_shared_phrase_is_no_copy():
    assert not leaks([task(LONG)], [task(LONG[:40])])
    assert not leaks(
        [task("Which film came out first, Home Alone or Alone at Home?")], [task("Which film came out first, A or B?")]
    )


def test_questions_that_only_share_a_template_are_no_copies():
    words = [
        f"{a}{b}" for a in ("ber", "lon", "mad", "par", "rom") for b in ("lin", "don", "rid", "is", "a", "en", "ow")
    ]
    templates = (
        "What is the population density of the country on the longest border of the country with the city of {}, "
        "per square km?",
        "How many airports are there in the country whose capital is {}?",
        "Which calling code do phone numbers in the country on the longest border of the home country of {} have?",
    )
    texts = [template.format(word) for word in words for template in templates]
    Random(0).shuffle(texts)
    assert not leaks([task(text) for text in texts[:30]], [task(text) for text in texts[30:]])


@pytest.mark.parametrize(
    "families", [None, {"one_hop": 3, "two_hop": 3, "three_hop": 1.5, "arithmetic": 1.5, "comparison": 0.5}]
)
def test_the_atlas_splits_share_no_question(families):
    train, validation, test = (atlas.tasks(split, families) for split in ("train", "validation", "test"))
    assert not leaks(validation, train) and not leaks(test, train) and not leaks(test, validation)
    assert not leaks(test[:100], validation[:50])


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart_vllm"])
def test_bundled_recipes_that_bring_their_tasks_have_no_shared_questions(recipe):
    data = load_recipe(recipe).data
    found = {split: load(config) for split in ("train", "validation", "test") if (config := getattr(data, split))}
    assert len(found) == 3
    assert not any(leaks(found[other], found[one]) for one, other in combinations(found, 2))


def test_only_a_fraction_of_all_pairs_is_compared(monkeypatch):
    words = [f"w{number}" for number in range(3000)]
    compared = []
    candidates = leakage._NearCopies.candidates
    monkeypatch.setattr(
        leakage._NearCopies, "candidates", lambda self, text: compared.append(found := candidates(self, text)) or found
    )

    def texts(count: int, seed: int) -> list[Task]:
        chance = Random(seed)  # a few words are in most texts, most words in a few, as in a language
        return [
            task(
                " ".join(words[int(3000 * chance.random() ** 3)] for _ in range(chance.randint(10, 60))),
                f"{seed}/{number}",
            )
            for number in range(count)
        ]

    training, questions = texts(2000, 0), texts(200, 1)
    found = leaks([*questions[:-1], training[77]], training)
    assert [leak.found_in for leak in found.leaks] == ["0/77"]
    assert sum(map(len, compared)) < 0.2 * len(training) * len(questions)


LIMA = "How many airports are there in the country whose capital is Lima?"


@pytest.mark.parametrize("others", [(), ("train", "validation", "test")], ids=["alone", "in the atlas"])
@pytest.mark.parametrize(
    "turned",
    [
        "The country whose capital is Lima has how many airports?",
        "Lima is the capital of a country: how many airports does it have?",
        "In the country whose capital is Lima, how many airports are there?",
    ],
)
def test_a_short_question_that_is_turned_around_is_found(turned, others):
    training = [*(each for split in others for each in atlas.tasks(split)), task(turned, "copy")]
    assert [leak.found_in for leak in leaks([task(LIMA)], training).leaks] == ["copy"]


def test_questions_of_the_atlas_turned_around_are_found_and_no_others_alone():
    random = Random(0)
    questions = random.sample(atlas.tasks("test"), 60)
    for question, other in zip(questions, [*questions[1:], questions[0]], strict=True):
        words = question.question.rstrip("?").split()
        at = random.randint(1, len(words) - 1)
        assert leaks([question], [task(" ".join((*words[at:], *words[:at])))])
        assert not leaks([question], [other])


def test_what_a_prompt_adds_is_no_part_of_a_question():
    asked = task(f"{LONG}\n\nGive the answer as a number.", question=LONG)
    assert leaks([asked], [task(LONG)]).leaks[0].same


def test_the_same_words_in_two_setups_are_two_questions():
    one, same, other, bare = (
        replace(task("Fill the shelf."), setup=setup) for setup in ({"n": 1}, {"n": 1}, {"n": 2}, None)
    )
    assert leaks([one], [same]) and leaks([one], [bare]) and leaks([bare], [one])
    assert not leaks([one], [other])


def test_chinese_questions_are_compared_by_the_character():
    text = "截至2024年12月31日，2024年上海黄金交易所合约的最高价与最低价之差约为多少元？"
    assert leaks([task(text)], [task(text.replace("，", ","))]).leaks[0].same
    assert leaks([task(text)], [task("请问，" + text.replace("约为", "是"))])


def information(features: list[set], others: list[set]) -> dict:
    """Of every word or pair, by counting the texts that hold it."""
    return {
        feature: math.log(
            (len(features) + len(others))
            / max(
                1,
                sum(feature in f for f in features)
                + sum(feature in f for f in others)
                - both(feature, features, others),
            )
        )
        ** 2
        for feature in set().union(*features, *others)
    }


def both(feature: object, features: list[set], others: list[set]) -> bool:
    return any(feature in f for f in features) and any(feature in f for f in others)


def content(words: list[str]) -> set[str]:
    return set(words) - FILLERS or set(words)


def slowly(questions: list[str], training: list[str]) -> list[list[float]]:
    """The share of each question found in each text, by comparing all with all."""
    asked, theirs = ([tokens(text) for text in texts] for texts in (questions, training))
    of_word = information([content(t) for t in asked], [content(t) for t in theirs])
    of_pair = information([set(pairwise(t)) for t in asked], [set(pairwise(t)) for t in theirs])

    def share(question: list[str], text: list[str]) -> float:
        if question == text:
            return 1.0
        shared, whole, back = (
            math.fsum(of_word[w] for w in s)
            for s in (content(question) & content(text), content(question), content(text))
        )
        if not shared or shared / whole < MIN_SHARE:
            return 0.0
        quoted = len(question) >= QUOTE_WORDS and any(
            text[at : at + len(question)] == question for at in range(len(text))
        )
        mine, other = set(pairwise(question)), set(pairwise(text))
        in_order = math.fsum(of_pair[p] for p in mine & other) >= MIN_PAIRS * math.fsum(of_pair[p] for p in mine)
        both = len(content(question) & content(text)) / len(content(question) | content(text))
        turned = shared / back >= MIN_SHARE and both >= SAME_WORDS
        return min(shared / whole, 0.999) if quoted or turned or (in_order and shared / back >= MIN_REVERSE) else 0.0

    return [[share(question, text) for text in theirs] for question in asked]


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "has", "the"]), min_size=1, max_size=24).map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, max_size=4))
def test_the_fast_way_agrees_with_the_slow_one(questions, training):
    found = leaks([task(text, str(at)) for at, text in enumerate(questions)], [task(text) for text in training])
    shares = {str(at): max([0.0, *row]) for at, row in enumerate(slowly(questions, training))}
    assert {leak.id: leak.share for leak in found.leaks} == pytest.approx(
        {name: share for name, share in shares.items() if share}
    )


def test_a_test_set_is_no_validation_set_unless_told(tiny_project: TinyProject):
    with pytest.raises(ConfigError, match=r"benchmark:gsm8k is a test set.*allow_test_questions"):
        load_recipe(tiny_project.recipe, ["data.validation.source=benchmark:gsm8k"])
    assert load_recipe(
        tiny_project.recipe, ["data.validation.source=benchmark:gsm8k", "data.allow_test_questions=true"]
    )
    copied = tiny_project.recipe.with_name("copied.jsonl")
    copied.write_text((tiny_project.recipe.parent / "test.jsonl").read_text())
    with pytest.raises(ConfigError, match=r"data\.validation.*of the test data.*allow_test_questions"):
        prepare(load_recipe(tiny_project.recipe, [f"data.validation.source={copied}"]))
    told = prepare(
        load_recipe(tiny_project.recipe, [f"data.validation.source={copied}", "data.allow_test_questions=true"])
    )
    assert any(level == "warning" and "in validation and in test data" in note for note, level in told.notes)
    played = [f"data.validation.source={copied}", "environment={use: puzzle}", "tools=[]", "reward={}"]
    told = prepare(load_recipe(tiny_project.recipe, played))  # the words of a game may be the same for every task
    assert any(level == "warning" and "in validation and in test data" in note for note, level in told.notes)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the data are not here")
def test_real_training_data_are_searched_in_a_moment():
    training = load(DataConfig(source=str(DATA / "train" / "train_10k.parquet")))
    found = {
        name: leaks(benchmark(name).tasks(data=DATA / "benchmarks"), training)
        for name in ("hotpotqa", "gsm8k", "math500")
    }
    assert all(leakage.num_questions == size for leakage, size in zip(found.values(), (200, 1319, 500), strict=True))
    assert [sum(leak.same for leak in leakage.leaks) for leakage in found.values()] == [5, 0, 0]


@pytest.mark.skipif(not DATA.is_dir(), reason="the data are not here")
def test_real_validation_data_that_hold_a_benchmark_are_told():
    validation = load(DataConfig(source=str(DATA / "train" / "valid.parquet")))
    assert len(leaks(benchmark("aime24").tasks(data=DATA / "benchmarks"), validation).leaks) == 30
    assert not leaks(benchmark("aime25").tasks(data=DATA / "benchmarks"), validation)
