"""Text that a base writes by itself: what drift is measured on, and what an anchor replays, drawn apart.

Source: context-free samples as an unbiased reference for what a model knows, arXiv 2505.13811.

Letters: W windows, T tokens.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftwood.base import Base
from graftwood.files import atomic_folder, cache_home, storage
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.expected import Expected, expect

LENGTH = 128
PROBE_SEED, REPLAY_SEED = 0, 1  # what is trained on never measures
VERSION = 2
_TOGETHER = 48


def remembered(base: Base, engine: Engine, windows: int, seed: int, room: int) -> Expected:
    """So many of the base's samples with what it expected in them: drawn the first time, then from the cache.

    They are shorter where who reads them has no room for `LENGTH` tokens.
    """
    name, length = f"{base.fingerprint[:16]}-{base.decoder.precision}-v{VERSION}", min(LENGTH, room)
    shorter = "" if length == LENGTH else f"-{length}"
    folder = cache_home() / "samples" / f"{name}-{windows}-{seed}{shorter}"
    if not folder.exists():
        drawn = expect(base.decoder, sample_windows(base, engine, windows, length, seed))
        with storage(f"write {folder}"), atomic_folder(folder) as work:
            save_file({"ids": drawn.ids, "words": drawn.words, "log_p": drawn.log_p}, work / "samples.safetensors")
    return Expected(**load_file(folder / "samples.safetensors"))


def sample_windows(base: Base, engine: Engine, windows: int, length: int, seed: int) -> Tensor:
    """Text the base writes at temperature 1 from nothing, [W, T]; it may run past the end of a document.

    Half of the windows begin as a document does, half as a conversation does where the base has a chat template.
    """
    document = [base.document_start()]
    conversation = base.template.opening()[: length // 2] if base.template.own else []
    starts = [(document, conversation or document)[place % 2] for place in range(windows)]
    # An end token ends no window; one that had fewer tokens to begin with is cut to the length of the others.
    sampling = Sampling(temperature=1.0, seed=seed, max_tokens=length - len(document), ignore_eos=True)
    written = engine.generate(starts, sampling, batch=_TOGETHER)
    return torch.tensor([[*start, *done.ids][:length] for start, done in zip(starts, written, strict=True)])
