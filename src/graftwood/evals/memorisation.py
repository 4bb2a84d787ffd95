"""Did the model learn the rows, or learn them by heart?

Three views of the same losses, on as many training rows as held-out rows: their ratio, whether training rows can be
told from held-out ones, and how many answers a patient stranger would get word for word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graftwood.evals import stats
from graftwood.evals.card import Estimate, Memory
from graftwood.evals.lights import LEVELS, RATIO, Level, level, recognised

Losses = Sequence[tuple[float, int]]  # summed answer loss in nats, answer tokens

# An answer of probability p shows up at least once in 100 samples with probability 1 - (1 - p)^100; extractable means
# that this is at least one half. Source: Hayes et al. 2024, arXiv 2410.19482, (n, p)-discoverable with n=100, p=0.5.
TRIES, CHANCE = 100, 0.5
_THRESHOLD = math.log(1 - (1 - CHANCE) ** (1 / TRIES))
_LEAST = 1e-6  # nats: what is learned to the last bit has a loss of zero, which nothing can be divided by
_FEW = "fewer than two rows on one side"


def memory(base_train: Losses, tuned_train: Losses, base_heldout: Losses, tuned_heldout: Losses) -> Memory:
    """The MEMORY part of the card, from the answer losses of the same rows under the base and the tuned model."""
    train, heldout = _per_token(tuned_train), _per_token(tuned_heldout)
    gain_train = _per_token(base_train) - train
    gain_heldout = _per_token(base_heldout) - heldout
    ratio = stats.two_sample(_loss_ratio, heldout, train, _FEW)
    auc = stats.two_sample(stats.area_under_curve, gain_train, gain_heldout, _FEW)
    return Memory(
        verdict=_verdict(ratio, auc),
        loss_train=stats.mean(train),
        loss_heldout=stats.mean(heldout),
        ratio=ratio,
        membership_auc=auc,
        extractable=stats.mean(_extractable(tuned_train)),
        extractable_heldout=stats.mean(_extractable(tuned_heldout)),
        extractable_base=stats.mean(_extractable(base_train)),
    )


def _verdict(ratio: Estimate, auc: Estimate) -> Level | Literal["unknown"]:
    """Grades of the loss ratio as in the retention literature (1.2, 1.5, 2), raised by a telling membership score."""
    told = recognised(auc)
    if ratio.value is None or told is None:
        return "unknown"
    return max(level(ratio.value, RATIO), told, key=LEVELS.index)


def _loss_ratio(heldout: NDArray[np.float64], train: NDArray[np.float64]) -> float:
    return float(max(heldout.mean(), _LEAST) / max(train.mean(), _LEAST))


def _per_token(losses: Losses) -> NDArray[np.float64]:
    return np.array([total / count for total, count in losses], dtype=np.float64)


def _extractable(losses: Losses) -> NDArray[np.float64]:
    return np.array([float(-total >= _THRESHOLD) for total, _ in losses], dtype=np.float64)
