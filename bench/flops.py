"""Floating point operations that LoRA training of packed rows needs, counted from the decoder's own shapes.

A matrix product of `[n, k]` and `[k, m]` is `2 n k m`. Per token of a document, with W a linear of the blocks:

* `2 |W|` forward and `2 |W|` for the input's gradient. Frozen weights need no gradient of their own. The first block's
  query, key and value read the embedding, which is frozen too: they need no input gradient.
* LoRA: `2 r (in + out)` forward, as much for the weights' gradients, and as much for the inputs' (only `2 r out` where
  the linear itself needs no input gradient).
* In the last block all but query, key and value is computed for the answer tokens alone: nothing else of it is read.
* Attention: scores and values, `4 s H D` for each of the `(T + 1) / 2` positions that a token sees on average, forward;
  twice that backward. What a kernel computes again or behind the causal mask does not count.

And per answer token `4 |head|`: logits and the hidden state's gradient. Norms, activations, the optimiser's step and
recomputation do not count either: they are time that training takes without any of this work done.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftwood.model.decoder import Decoder


def lora_training(decoder: Decoder, documents: Sequence[int], answer_tokens: int, rank: int) -> int:
    """Operations of one pass, forward and backward, over documents of these lengths, LoRA on all linears."""
    config = decoder.config
    blocks = decoder.architecture.names.blocks
    first, last = (f"{blocks}.{number}." for number in (0, config.layers - 1))
    projections = tuple(f"{name}_proj" for name in "qkv")
    linears = 0
    for path, linear in decoder.linears().items():
        outputs, inputs = linear.weight.shape
        frozen_input = path.startswith(first) and path.endswith(projections)
        a_token = (2 if frozen_input else 4) * outputs * inputs
        a_token += 6 * rank * (inputs + outputs) - (2 * rank * inputs if frozen_input else 0)
        needed = answer_tokens if path.startswith(last) and not path.endswith(projections) else sum(documents)
        linears += a_token * needed
    attended = sum(length * (length + 1) // 2 for length in documents)
    attention = 3 * 4 * config.heads * config.head_size * config.layers * attended
    head = 4 * decoder.head_weight().numel() * answer_tokens
    return linears + attention + head
