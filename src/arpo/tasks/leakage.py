"""Whether questions of one set occur in another: a benchmark's in what a model was trained on.

A question is found where another text has the same words in the same order, or nearly: where the two share most of their
*information*. The information of a word is its squared inverse document frequency over both sets, as in the cosine of TF-IDF. Words
of a template stand in many questions and weigh next to nothing; the name that a question asks about weighs most. So punctuation,
another order of clauses or a few further words hide no copy, and two questions that only share a template are no copies. A long
question in which a number was changed is one: numbers are common words, and its story is told nowhere else.

Knows texts alone: where they came from, others do.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from arpo.answer_text import tokens
from arpo.tasks import Task

MOST = 0.9  # the least share of a question's information that a text near it holds,
PAIRS = 0.5  # of the information of its pairs of neighbouring words (the same words at random are no copy),
BACK = 0.5  # and of the text's own information that the question holds (a long text has many words by chance),
QUOTED = 8  # unless the text quotes a question of so many words

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Leak:
    """A question that occurs elsewhere: its id, that of the other one, and the share of its information found there (1.0: the same
    words in the same order)."""

    id: str
    question: str
    found_in: str
    share: float

    @property
    def same(self) -> bool:
        return self.share == 1.0


@dataclass(frozen=True, slots=True)
class Leakage:
    """What `leaks` found among `num_questions`."""

    num_questions: int
    leaks: tuple[Leak, ...]

    def __bool__(self) -> bool:
        return bool(self.leaks)

    def __str__(self) -> str:
        if not self.leaks:
            return f"none of {self.num_questions} questions"
        same, first = sum(leak.same for leak in self.leaks), self.leaks[0]
        near = len(self.leaks) - same
        kinds = " and ".join(text for text, count in ((f"{same} the same", same), (f"{near} nearly", near)) if count)
        return f"{len(self.leaks)} of {self.num_questions} questions ({kinds}), such as {first.question!r:.100} ({first.found_in})"


def leaks(questions: Sequence[Task], training: Iterable[Task]) -> Leakage:
    """Which of `questions` occur in `training`. Only texts that share a rare word are compared, so time grows with the words of
    both sets and hardly with their product."""
    others = list(training)
    asked, theirs = [question_words(task) for task in questions], [question_words(task) for task in others]
    near = _Near(asked, theirs)
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, words in enumerate(asked):
        same[words].append(number)
    found: dict[int, Leak] = {}
    for task, words in zip(others, theirs, strict=True):
        for number, share in (near.shares(words) | dict.fromkeys(same.get(words, ()), 1.0)).items():
            if number not in found or share > found[number].share:
                found[number] = Leak(questions[number].id, bare_question(questions[number]), task.id, share)
    order = sorted(found, key=lambda number: (-found[number].share, number))
    return Leakage(len(questions), tuple(found[number] for number in order))


def bare_question(task: Task) -> str:
    """The question without what a benchmark's prompt adds to it."""
    given = task.metadata.get("question")
    return given if isinstance(given, str) else task.question


def question_words(task: Task) -> tuple[str, ...]:
    return tuple(tokens(bare_question(task)))


Words = tuple[str, ...]


class _Near:
    """The questions `asked`, by their rarest words, to be compared with texts of `theirs`."""

    def __init__(self, asked: Sequence[Words], theirs: Sequence[Words]) -> None:
        self.asked, self.sets = asked, [frozenset(words) for words in asked]
        self.of_word = _information(self.sets, [frozenset(words) for words in theirs])
        self.of_pair = _information([_pairs(words) for words in asked], [_pairs(words) for words in theirs])
        self.whole = [_sum(words, self.of_word) for words in self.sets]
        self.rare = self._rarest()

    def _rarest(self) -> dict[str, list[int]]:
        """The questions by each of so many of their rarest words that a text without any of them cannot hold `MOST` of one."""
        rare: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self.sets):
            left = (1 - MOST) * self.whole[number] + 1e-9  # a little more, for sums that were rounded
            for word in sorted(words, key=lambda word: (-self.of_word[word], word)):
                if left < 0 or not self.of_word[word]:
                    break
                rare[word].append(number)
                left -= self.of_word[word]
        return rare

    def shares(self, text: Words) -> dict[int, float]:
        """The questions that are near `text`, with the share of their information that it holds (below 1)."""
        words = frozenset(text)
        whole = _sum(words, self.of_word)
        found = {}
        for number in {number for word in words for number in self.rare.get(word, ())}:
            share = _sum(words & self.sets[number], self.of_word) / self.whole[number]
            if share >= MOST and self._fits(number, text, share * self.whole[number] / whole):
                found[number] = min(share, 0.999)
        return found

    def _fits(self, number: int, text: Words, back: float) -> bool:
        """Whether order and length agree too. `back`: the share of the text's information that the question holds."""
        question = self.asked[number]
        if len(question) >= QUOTED and f" {' '.join(question)} " in f" {' '.join(text)} ":
            return True
        pairs = _pairs(question)
        shared = _sum(pairs & _pairs(text), self.of_pair)
        return back >= BACK and shared >= PAIRS * _sum(pairs, self.of_pair)


def _pairs(words: Words) -> frozenset[Words]:
    return frozenset(pairwise(words))


def _information(asked: Sequence[frozenset[T]], theirs: Sequence[frozenset[T]]) -> dict[T, float]:
    """`ln(N / n)^2` of each word that is in `n` of `N` texts. For a word of both sets one text less is counted: that a question has
    a copy does not make its words less telling."""
    mine, other = (Counter(word for words in texts for word in words) for texts in (asked, theirs))
    total = len(asked) + len(theirs)
    return {word: math.log(total / (mine[word] + other[word] - (word in mine and word in other))) ** 2 for word in mine | other}


def _sum(words: Iterable[T], information: Mapping[T, float]) -> float:
    """Exact, so that it does not depend on the order in which a set yields its words."""
    return math.fsum(information[word] for word in words)
