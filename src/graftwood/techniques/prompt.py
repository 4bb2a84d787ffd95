"""Prompt tuning: vectors before the text train, in the place of a prompt's embeddings.

Source: Lester et al. 2021, arXiv 2104.08691, section 2; the starts are those of its section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from graftwood.model.decoder import Decoder
from graftwood.techniques._preface import PrefaceTechnique, Table


class Prompt(PrefaceTechnique):
    """`start` is where the vectors come from; with `text` it is that text's embeddings, repeated to fill `tokens`."""

    name: ClassVar[str] = "prompt"
    title: ClassVar[str] = "prompt tuning"
    source: ClassVar[str] = "Lester et al. 2021, arXiv 2104.08691"
    learning_rate: ClassVar[float] = 3e-2
    learning_rate_reason: ClassVar[str] = "of PEFT's prompt-tuning guide; the paper took 0.3 with Adafactor"
    formula: ClassVar[str] = "[p1 ... pP x1 ... xT], p trained"
    example: ClassVar[str] = "--set tokens=20 --set text='Answer in JSON.'"
    trains: ClassVar[str] = "the embeddings of the tokens before the text"
    cost: ClassVar[str] = "`tokens` more positions in every sequence; gradients pass through all layers"
    peft_type: ClassVar[str | None] = "PROMPT_TUNING"
    peft_past: ClassVar[tuple[str, ...]] = (
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    )  # fmt: skip

    start: Annotated[
        Literal["vocabulary", "random"], Field(description="from random tokens' embeddings, or random numbers")
    ] = "vocabulary"
    text: Annotated[str, Field(description="a text to start from, repeated to fill the prompt")] = ""
    text_ids: Annotated[tuple[int, ...], Field(description="its tokens; made from the text")] = ()

    def read(self, encode: Callable[[str], Sequence[int]]) -> Self:
        return self.model_copy(update={"text_ids": tuple(encode(self.text))}) if self.text else self

    def problems(self, decoder: Decoder) -> list[str]:
        found, count = super().problems(decoder), len(self.text_ids)
        if count > self.tokens:
            found.append(f"text is {count} tokens and the prompt {self.tokens}; shorten it or give tokens={count}")
        return found

    def mistakes(self, decoder: Decoder) -> list[str]:
        if not self.text or "start" not in self.model_fields_set:
            return []
        return [f"text is a start of its own, and start={self.start} another; leave one of them out"]

    def begin(self, decoder: Decoder, seed: int) -> Table:
        generator = torch.Generator().manual_seed(seed)
        if self.text_ids:
            ids = torch.tensor([self.text_ids[place % len(self.text_ids)] for place in range(self.tokens)])
        elif self.start == "vocabulary":
            ids = torch.randint(decoder.config.vocab_size, (self.tokens,), generator=generator)
        else:
            return Table(torch.empty(self.tokens, decoder.config.hidden_size).uniform_(-0.5, 0.5, generator=generator))
        return Table(decoder.embedded(ids.to(decoder.device)).detach().float().clone())

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        # How it started is no matter to who opens it, and for a text PEFT would ask for a tokenizer.
        return super().describe(decoder) | {"prompt_tuning_init": "RANDOM"}
