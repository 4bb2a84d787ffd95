"""SentencePiece vocabularies of GGUF files, rebuilt as a `tokenizers` pipeline that gives llama.cpp's ids.

The file has pieces and scores, no merges: of all neighbours that make a piece, the one of the highest score is made
first. That is byte-pair encoding with every way to halve a piece as a merge, in the order of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from graftwood.errors import ModelError

SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


def from_pieces(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file whose `tokenizer.ggml.model` is `llama`: Llama 2's, Mistral's, Gemma's.

    Where the file says so, every text begins with a space that decoding takes off again, as does what follows a piece
    that is found in the text before the merges. Raises: ModelError for metadata that is not there or not whole.
    """
    try:
        pieces, scores, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    except KeyError as error:
        raise ModelError(f"the GGUF file lacks the metadata {error.args[0]}; use the model's folder") from None
    if not len(pieces) == len(scores) == len(types):
        sizes = f"{len(pieces)} pieces, {len(scores)} scores and {len(types)} types"
        raise ModelError(f"the GGUF file's vocabulary has {sizes}; use the model's folder")
    unknown = next((piece for piece, kind in zip(pieces, types, strict=True) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=_merges(pieces, scores),
            unk_token=unknown,
            fuse_unk=False,
            byte_fallback=_BYTE in types,
        )
    )
    spaced = normalizers.Replace(" ", SPACE)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaced])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaced
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_tokens(
        [
            AddedToken(piece, special=kind != _USER_DEFINED, normalized=False)
            for piece, kind in zip(pieces, types, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _merges(pieces: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every two pieces that make one, the highest score first."""
    numbers = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    for index in sorted(range(len(pieces)), key=lambda index: -scores[index]):
        piece = pieces[index]
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += sorted(
            (pair for pair in halves if pair[0] in numbers and pair[1] in numbers),
            key=lambda pair: (numbers[pair[0]], numbers[pair[1]]),
        )
    return merges
