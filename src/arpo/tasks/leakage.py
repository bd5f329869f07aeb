"""Detects leakage: questions of one set, such as a benchmark, that occur in another, such as training data.

A question leaks if another text has the same words in the same order, or nearly so: if the two share most of their
*information*. The information of a word is its squared inverse document frequency over both sets, as in the cosine of
TF-IDF. The words of a template occur in many questions and weigh almost nothing; the name that a question asks about
weighs most. Words such as "has" and "the" weigh nothing, so that a short question is judged by what it asks about, even
where there are too few texts to tell which words are common. So punctuation, another order of clauses or a few extra
words do not hide a copy, and two questions that only share a template are not copies. A long question with one changed
number is a copy: numbers are common words, and the rest of its text occurs nowhere else.

Knows texts. Refuses to know where they come from.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from arpo.answer_text import STOPWORDS, tokens
from arpo.tasks import Task

# A text is a near copy of a question if it holds at least these shares of information:
MIN_SHARE = 0.9  # of the question's words,
MIN_PAIRS = 0.5  # of the question's pairs of neighbouring words (the same words in random order are no copy),
MIN_REVERSE = 0.5  # and the question, of the text's words (a long text contains many words by chance);
QUOTE_WORDS = 8  # or if it quotes a question with at least this many words,
SAME_WORDS = 0.8  # or if at least this many of the words of both are common to both, in whatever order.

# Words that say nothing about what a question is about, beside the stop words of a search.
FILLERS = STOPWORDS | {"are", "can", "could", "many", "much", "name", "please", "tell", "than", "there", "would", "you"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Leak:
    """A question that occurs elsewhere: its id, the id of the other task, and the share of its information there (1.0:
    the same words in the same order)."""

    id: str
    question: str
    found_in: str
    share: float

    @property
    def same(self) -> bool:
        return self.share == 1.0


@dataclass(frozen=True, slots=True)
class Leakage:
    """The leaks among `num_questions` questions."""

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
        return (
            f"{len(self.leaks)} of {self.num_questions} questions ({kinds}), such as {first.question!r:.100} "
            f"({first.found_in})"
        )


def leaks(questions: Sequence[Task], training: Iterable[Task]) -> Leakage:
    """The members of `questions` that occur in `training`; the same words in two different setups are two questions. It
    compares only texts that share a rare word, so the time grows with the number of words in both sets, not with their
    product."""
    training = list(training)
    question_texts = [question_words(task) for task in questions]
    training_texts = [question_words(task) for task in training]
    near = _NearCopies(question_texts, training_texts)
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, words in enumerate(question_texts):
        same[words].append(number)
    leaks: dict[int, Leak] = {}
    for task, words in zip(training, training_texts, strict=True):
        for number, share in (near.shares(words) | dict.fromkeys(same.get(words, ()), 1.0)).items():
            if None not in (setups := (questions[number].setup, task.setup)) and setups[0] != setups[1]:
                continue
            if number not in leaks or share > leaks[number].share:
                leaks[number] = Leak(questions[number].id, bare_question(questions[number]), task.id, share)
    order = sorted(leaks, key=lambda number: (-leaks[number].share, number))
    return Leakage(len(questions), tuple(leaks[number] for number in order))


def bare_question(task: Task) -> str:
    """The question without the text that a benchmark's prompt adds to it."""
    question = task.metadata.get("question")
    return question if isinstance(question, str) else task.question


def question_words(task: Task) -> tuple[str, ...]:
    return tuple(tokens(bare_question(task)))


Words = tuple[str, ...]


class _NearCopies:
    """An index of questions by their rarest words, which finds the questions of which a text is a near copy."""

    def __init__(self, questions: Sequence[Words], training: Sequence[Words]) -> None:
        self.questions, self.word_sets = questions, [_content(words) for words in questions]
        self.word_information = _information(self.word_sets, [_content(words) for words in training])
        self.pair_information = _information(
            [_pairs(words) for words in questions], [_pairs(words) for words in training]
        )
        self.totals = [_sum(words, self.word_information) for words in self.word_sets]
        self.by_rare_word = self._index()

    def _index(self) -> dict[str, list[int]]:
        """The numbers of questions by rare word. A text with none of a question's rare words holds less than
        `MIN_SHARE` of its information."""
        by_rare_word: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self.word_sets):
            left = (1 - MIN_SHARE) * self.totals[number] + 1e-9  # a margin for rounding
            for word in sorted(words, key=lambda word: (-self.word_information[word], word)):
                if left < 0 or not self.word_information[word]:
                    break
                by_rare_word[word].append(number)
                left -= self.word_information[word]
        return by_rare_word

    def shares(self, text: Words) -> dict[int, float]:
        """The questions of which `text` is a near copy, with the share of their information that it holds (below 1)."""
        words = _content(text)
        total = _sum(words, self.word_information)
        shares = {}
        for number in self.candidates(words):
            share = _sum(words & self.word_sets[number], self.word_information) / self.totals[number]
            if share >= MIN_SHARE and self._agrees(number, text, words, share * self.totals[number] / total):
                shares[number] = min(share, 0.999)
        return shares

    def candidates(self, words: Iterable[str]) -> set[int]:
        """The questions that share a rare word with these."""
        return {number for word in words for number in self.by_rare_word.get(word, ())}

    def _agrees(self, number: int, text: Words, words: frozenset[str], reverse: float) -> bool:
        """True if order and length agree too. `words` are those that the text is about; `reverse` is the share of their
        information that the question holds."""
        question, asked = self.questions[number], self.word_sets[number]
        if reverse >= MIN_SHARE and len(asked & words) >= SAME_WORDS * len(asked | words):
            return True
        if len(question) >= QUOTE_WORDS and f" {' '.join(question)} " in f" {' '.join(text)} ":
            return True
        pairs = _pairs(question)
        shared = _sum(pairs & _pairs(text), self.pair_information)
        return reverse >= MIN_REVERSE and shared >= MIN_PAIRS * _sum(pairs, self.pair_information)


def _content(words: Words) -> frozenset[str]:
    """The words that say what a text is about: all but fillers, unless it has no others."""
    return frozenset(words) - FILLERS or frozenset(words)


def _pairs(words: Words) -> frozenset[Words]:
    return frozenset(pairwise(words))


def _information(questions: Sequence[frozenset[T]], training: Sequence[frozenset[T]]) -> dict[T, float]:
    """`ln(N / n)^2` for every word that occurs in `n` of `N` texts. A word of both sets counts one text less: a copy of
    a question does not make its words less informative."""
    in_questions, in_training = (Counter(word for words in texts for word in words) for texts in (questions, training))
    total = len(questions) + len(training)

    def texts_with(word: T) -> int:
        return in_questions[word] + in_training[word] - (word in in_questions and word in in_training)

    return {word: math.log(total / texts_with(word)) ** 2 for word in in_questions | in_training}


def _sum(words: Iterable[T], information: Mapping[T, float]) -> float:
    """The exact sum, which does not depend on the order in which a set yields its words."""
    return math.fsum(information[word] for word in words)
