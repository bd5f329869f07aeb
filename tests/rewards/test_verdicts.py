"""The measures against verdicts by hand, and what must hold for any pair of answers."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import VERDICTS

from arpo.answer_text import contains, exact, f1, tokens
from arpo.rewards.choices import choice, read_choice
from arpo.rewards.dates import Date, dates_in, read_date
from arpo.rewards.maths import MathsVerifier, compare_quickly
from arpo.rewards.measures import BY_TEXT
from arpo.rewards.quantities import han_number, numeric, read_quantity
from arpo.rewards.short import gaia, short

RULES = sorted(BY_TEXT)
SAID = st.text(st.sampled_from("aAbz 019.,-%$€/年元月日不是王长沙(){}\\^_'\u00e9ー１～"), max_size=24)


@pytest.fixture(scope="module")
def verifier():
    made = MathsVerifier()
    yield made
    made.close()


def test_there_are_enough_of_them():
    assert sum(map(len, VERDICTS.values())) >= 300 and set(VERDICTS) == {*BY_TEXT, "maths"}
    for measure, pairs in VERDICTS.items():
        assert {right for _, _, right in pairs} == {True, False}, measure


@pytest.mark.parametrize("measure", RULES)
def test_verdicts_by_hand(measure):
    found = [
        (answer, gold)
        for answer, gold, right in VERDICTS[measure]
        if (BY_TEXT[measure](answer, gold) >= 0.5) is not right
    ]
    assert not found


def test_verdicts_by_hand_of_maths(verifier):
    assert not [
        (answer, gold) for answer, gold, right in VERDICTS["maths"] if verifier.equal(answer, gold) is not right
    ]


def test_golds_of_the_table_are_right_themselves(verifier):
    for measure, pairs in VERDICTS.items():
        equal = BY_TEXT.get(measure, verifier.equal)
        golds = {gold for _, gold, _ in pairs}
        assert not [gold for gold in golds if equal(gold, gold) != 1.0], measure


@pytest.mark.parametrize("measure", RULES)
@settings(max_examples=150, deadline=None)
@given(answer=SAID, gold=SAID)
def test_a_score_is_a_share_and_any_text_can_be_scored(measure, answer, gold):
    assert 0.0 <= BY_TEXT[measure](answer, gold) <= 1.0
    assert compare_quickly(answer, gold) in (True, False, None)
    read_quantity(answer), read_date(answer), dates_in(answer), read_choice(answer)


@settings(max_examples=150, deadline=None)
@given(SAID)
def test_a_gold_is_right(gold):
    if tokens(gold):
        assert (
            exact(gold, gold)
            == f1(gold, gold)
            == contains(gold, gold)
            == short(gold, gold)
            == choice(gold, gold)
            == 1.0
        )
    assert gaia(gold, gold) == 1.0 and compare_quickly(gold, gold) is bool(gold.strip())


@settings(max_examples=150, deadline=None)
@given(SAID, SAID)
def test_symmetry(left, right):
    assert exact(left, right) == exact(right, left) and f1(left, right) == f1(right, left)
    assert {compare_quickly(left, right), compare_quickly(right, left)} != {True, False}


@given(st.text(st.sampled_from("abc 12é王长"), min_size=1, max_size=12))
def test_case_space_and_marks_change_nothing(text):
    for other in (text.upper(), f"  {text} ", f"{text}."):
        assert exact(other, text) == exact(text, text)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_no_two_whole_numbers_are_equal(left, right):
    for form in ("{}", "{:,}", "{}.0", "${}$", "{} km", "{}元"):
        verdict = float(left == right)
        assert numeric(form.format(left), str(right)) == verdict
        assert short(form.format(left), str(right)) == verdict
    for form in ("{}", "{:,}", "{}.0", "${}$", "\\boxed{{{}}}", "x = {}", "{} \\text{{ km}}"):
        assert compare_quickly(form.format(left), str(right)) is (left == right)
    assert gaia(f"{left:,}", str(right)) == float(left == right)


@given(
    st.decimals(places=3, min_value=-(10**6), max_value=10**6),
    st.decimals(places=3, min_value=-(10**6), max_value=10**6),
)
def test_numbers_further_apart_than_the_tolerance_are_never_equal(left: Decimal, right: Decimal):
    apart = abs(left - right) > max(abs(left), abs(right)) / 1000
    if apart:
        assert numeric(str(left), str(right)) == 0.0
    if left and apart:
        assert numeric(str(left), str(-left)) == 0.0


@given(st.integers(0, 99_999_999))
def test_chinese_numerals_are_read_as_they_are_written(number):
    assert han_number(chinese(number)) == number


def chinese(number: int) -> str:
    """`number` as a Chinese numeral."""
    if number >= 10_000:
        rest = number % 10_000
        return chinese(number // 10_000) + "万" + (("零" if rest < 1000 else "") + chinese(rest) if rest else "")
    said, gap = "", False
    for digit, unit in zip(f"{number:04d}", ("千", "百", "十", ""), strict=True):
        if digit == "0":
            gap = bool(said)
        else:
            said += ("零" if gap else "") + "零一二三四五六七八九"[int(digit)] + unit
            gap = False
    return said or "零"


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("June 24th, 1896.", Date(1896, 6, 24)),
        ("24 June 1896", Date(1896, 6, 24)),
        ("1896-06-24", Date(1896, 6, 24)),
        ("Sept. 3, 2001", Date(2001, 9, 3)),
        ("June 2019", Date(2019, 6, None)),
        ("1965年8月9日", Date(1965, 8, 9)),
        ("5月1日", Date(None, 5, 1)),
        ("May 1", Date(None, 5, 1)),
        ("2019-13-01", None),
        ("June 31st of nothing", None),
        ("2019", None),
    ],
)
def test_dates(text, date):
    assert read_date(text) == date


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("161.27元", "161.27", "cny"),
        ("$3.5 million", "3500000", "usd"),
        ("-5%", "-5", "%"),
        ("约二十三个", "23", ""),
        ("1,000 square kilometers", "1000", "square km"),
        ("twelve years", "12", "yr"),
        ("1e-3", "0.001", ""),
    ],
)
def test_quantities(text, value, unit):
    found = read_quantity(text)
    assert found is not None and (found.value, found.unit) == (Fraction(value), unit)


@pytest.mark.parametrize("text", ["五道口", "Five Guys", "6～7km", "1990-1995", "v1.2.3", "1" * 500, "", "many"])
def test_what_is_no_quantity(text):
    assert read_quantity(text) is None


@pytest.mark.parametrize("measure", RULES)
def test_long_and_hostile_text_is_scored_at_once(measure):
    for text in (
        "1" * 100_000,
        "(" * 50_000,
        "a " * 30_000,
        "A, " * 20_000,
        "一" * 50_000,
        "1,000 " * 20_000,
        "答案是" * 20_000,
        "\\text{" * 9_000 + "A" + "}" * 9_000,
    ):
        assert BY_TEXT[measure](text, "42") <= 1.0 and BY_TEXT[measure]("42", text) <= 1.0
        assert compare_quickly(text, "42") in (True, False, None)
