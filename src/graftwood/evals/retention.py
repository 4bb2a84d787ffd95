"""How far the model has moved from its base: divergence on text that the base itself wrote.

The base's next-word distributions over its own samples are kept as the 64 likeliest words and the mass of the rest.
Dropping detail can only lower a divergence (data-processing inequality), and the tuned model is compared with the base
that was, whether or not the base still exists in memory. The probe is never trained on: it only measures.

Letters: W windows, T tokens, K words kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftwood.base import Base
from graftwood.evals import stats
from graftwood.evals.card import Estimate
from graftwood.files import atomic_folder, cache_home, storage
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder

WINDOWS, LENGTH, WORDS = 48, 128, 64
VERSION = 2
_TOGETHER = 8


@dataclass(frozen=True)
class Probe:
    """Windows of base text and what the base expected after each token.

    Shapes: ids [W, T]; words [W, T, K] ids of its likeliest next tokens, likeliest first; log_p [W, T, K + 1] their
    log-probabilities and, last, that of all other tokens together.
    """

    ids: Tensor
    words: Tensor
    log_p: Tensor

    def first(self, windows: int) -> Probe:
        """A smaller probe for a quick look during training."""
        return Probe(self.ids[:windows], self.words[:windows], self.log_p[:windows])


@dataclass(frozen=True)
class Moved:
    """By window: mean KL(base || tuned) in nats a token, and the share of tokens with the same likeliest next word."""

    drift: np.ndarray[tuple[int], np.dtype[np.float64]]
    agreement: np.ndarray[tuple[int], np.dtype[np.float64]]

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Drift and same-next-word share, intervals over windows."""
        return stats.mean(self.drift), stats.mean(self.agreement)


def probe_for(base: Base, engine: Engine) -> Probe:
    """The base's probe: sampled and scored the first time, read from the cache afterwards.

    Half of the windows begin as a document does, half as a conversation does where the base has a chat template.
    """
    folder = cache_home() / "probes" / f"{base.fingerprint[:16]}-{precision(base.decoder)}-v{VERSION}"
    if not folder.exists():
        probe = score_probe(base.decoder, sample_windows(base, engine))
        with storage(f"write {folder}"), atomic_folder(folder) as work:
            save_file({"ids": probe.ids, "words": probe.words, "log_p": probe.log_p}, work / "probe.safetensors")
    return Probe(**load_file(folder / "probe.safetensors"))


def sample_windows(base: Base, engine: Engine, windows: int = WINDOWS, length: int = LENGTH) -> Tensor:
    """Text the base writes at temperature 1 from nothing, [W, T]; it may run past the end of a document."""
    document = [base.tokenizer.bos if base.tokenizer.bos is not None else base.tokenizer.eos[0]]
    conversation = base.template.opening()[: length // 2] if base.template.own else []
    starts = [(document, conversation or document)[place % 2] for place in range(windows)]
    # An end token ends no window; one that had fewer tokens to begin with is cut to the length of the others.
    sampling = Sampling(temperature=1.0, max_tokens=length - len(document), ignore_eos=True)
    written = engine.generate(starts, sampling, batch=windows)
    return torch.tensor([[*start, *done.ids][:length] for start, done in zip(starts, written, strict=True)])


def precision(decoder: Decoder) -> str:
    """The number format a decoder computes in: what one format measured is no baseline for another."""
    dtype = str(decoder.compute_dtype).removeprefix("torch.")
    return dtype if decoder.base_precision == "full" else f"{dtype}-{decoder.base_precision}"


@torch.inference_mode()
def score_probe(decoder: Decoder, ids: Tensor) -> Probe:
    """What a model expects after each token of the windows."""
    words, log_p = [], []
    for logits in _logits(decoder, ids):
        top = logits.log_softmax(-1).topk(min(WORDS, logits.shape[-1]), dim=-1)
        words.append(top.indices.cpu())
        log_p.append(_with_rest(top.values).cpu())
    return Probe(ids, torch.stack(words), torch.stack(log_p))


@torch.inference_mode()
def compare(decoder: Decoder, probe: Probe) -> Moved:
    """How far `decoder` is from the model that made the probe."""
    drift, agreement = [], []
    for logits, words, log_p in zip(_logits(decoder, probe.ids), probe.words, probe.log_p, strict=True):
        log_q = _with_rest(logits.log_softmax(-1).gather(-1, words.to(logits.device))).cpu()
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        drift.append(float(divergence.double().mean()))
        agreement.append(float((logits.argmax(-1).cpu() == words[:, 0]).double().mean()))
    return Moved(np.array(drift), np.array(agreement))


def _logits(decoder: Decoder, ids: Tensor) -> Iterator[Tensor]:
    """Logits after every token of a window, [T, V], window by window; the blocks are passed by several at once."""
    length = ids.shape[1]
    for group in ids.to(decoder.device).split(_TOGETHER):
        hidden = decoder.hidden(group.reshape(1, -1), (length,) * len(group))
        yield from map(decoder.logits, hidden.view(len(group), length, -1))


def _with_rest(log_probabilities: Tensor) -> Tensor:
    """Append the log-probability of everything that is not among the words."""
    rest = (1.0 - log_probabilities.exp().sum(-1, keepdim=True)).clamp_min(1e-7).log()
    return torch.cat([log_probabilities, rest], dim=-1)
