"""How far the model has moved from its base: divergence on text that the base itself wrote.

The probe, what the base expected after each token of its own samples, is never trained on: it only measures.

Letters: W windows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from graftwood.base import Base
from graftwood.evals import stats
from graftwood.evals.card import Estimate
from graftwood.generate.engine import Engine
from graftwood.model.decoder import Decoder
from graftwood.model.expected import Expected, window_logits, with_rest
from graftwood.samples import PROBE_SEED, remembered

WINDOWS = 48


@dataclass(frozen=True)
class Moved:
    """By window: mean KL(base || tuned) in nats a token, and the share of tokens with the same likeliest next word."""

    drift: np.ndarray[tuple[int], np.dtype[np.float64]]
    agreement: np.ndarray[tuple[int], np.dtype[np.float64]]

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Drift and same-next-word share, intervals over windows."""
        return stats.mean(self.drift), stats.mean(self.agreement)


def probe_for(base: Base, engine: Engine, room: int | None = None) -> Expected:
    """The base's probe: sampled and scored the first time, read from the cache afterwards.

    `room` are the positions of the models that will read it, by default those of the base as it is.
    """
    return remembered(base, engine, WINDOWS, PROBE_SEED, base.decoder.context if room is None else room)


@torch.inference_mode()
def compare(decoder: Decoder, probe: Expected) -> Moved:
    """How far `decoder` is from the model that made the probe."""
    drift, agreement = [], []
    for logits, words, log_p in zip(window_logits(decoder, probe.ids), probe.words, probe.log_p, strict=True):
        log_q = with_rest(logits.log_softmax(-1).gather(-1, words.to(logits.device))).cpu()
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        drift.append(float(divergence.double().mean()))
        agreement.append(float((logits.argmax(-1).cpu() == words[:, 0]).double().mean()))
    return Moved(np.array(drift), np.array(agreement))
