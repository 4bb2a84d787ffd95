"""How close an answer comes to what was wanted; each score is between 0 and 1, higher is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from graftwood.data.audit import BETWEEN_BLANKS, WORD

Metric = Callable[[str, str], float]


def exact_match(answer: str, wanted: str) -> float:
    """1 when both say the same, blanks folded."""
    return float(" ".join(answer.split()) == " ".join(wanted.split()))


def token_f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words as a bag. Source: Rajpurkar et al. 2016, arXiv 1606.05250."""
    given, right = _words(answer), _words(wanted)
    common = sum((Counter(given) & Counter(right)).values())
    return _f1(common, len(given), len(right))


def rouge_l(answer: str, wanted: str) -> float:
    """F-measure of the longest common subsequence of words. Source: Lin 2004, ROUGE, eq. 3-4 with beta 1."""
    given, right = _words(answer), _words(wanted)
    row = [0] * (len(right) + 1)
    for word in given:
        previous = 0
        for index, other in enumerate(right, 1):
            above = row[index]
            row[index] = previous + 1 if word == other else max(above, row[index - 1])
            previous = above
    return _f1(row[-1], len(given), len(right))


METRICS: dict[str, tuple[str, Metric]] = {
    "exact_match": ("exact match", exact_match),
    "rouge_l": ("ROUGE-L", rouge_l),
    "token_f1": ("word overlap (F1)", token_f1),
}


def best_over_references(metric: Metric, answer: str, references: Sequence[str]) -> float:
    """The score against the reference that it matches best."""
    return max(metric(answer, reference) for reference in references)


def headline(answers: Sequence[str]) -> str:
    """Which metric leads: exact match where answers are short or structured, ROUGE-L where they are prose."""
    structured = all(answer.strip()[:1] in "{[" for answer in answers)
    middle = sorted(len(BETWEEN_BLANKS.findall(answer)) for answer in answers)[len(answers) // 2]
    return "exact_match" if structured or middle <= 3 else "rouge_l"


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _f1(common: int, given: int, right: int) -> float:
    if given == 0 or right == 0:
        return float(given == right)
    return 2 * common / (given + right)
