"""Chat templates: conversations to ids, with the text of users kept apart from the template's own control tokens.

A template is untrusted code from a model file: it is rendered in jinja2's sandbox. What people wrote is untrusted text:
`<|im_end|>` inside a message must stay text. So the template is rendered with a placeholder for each message, and only
the template's own pieces may yield special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graftwood.data.rows import Turn
from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.errors import DataError, ModelError

# For a base without a template of its own: plain words, no token that the vocabulary may lack.
PLAIN = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Piece:
    """Consecutive ids and whether an answer's loss counts them."""

    ids: tuple[int, ...]
    answer: bool


class ChatTemplate:
    """A jinja2 template and the tokenizer whose control tokens it speaks."""

    def __init__(self, source: str, tokenizer: BPETokenizer, own: bool = True) -> None:
        self.source = source
        self.own = own
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"the model's chat template does not parse: {error}") from None

    def text(self, turns: Sequence[Turn], ask: bool = False) -> str:
        """The conversation as the template writes it; with `ask`, ready for the assistant to answer.

        Raises: DataError with the template's own words when it refuses the conversation.
        """
        return self._render([(turn.role, turn.content) for turn in turns], ask)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids up to where the assistant begins to answer."""
        return [index for piece in self.pieces(turns, ask=True) for index in piece.ids]

    def pieces(self, turns: Sequence[Turn], ask: bool = False) -> list[Piece]:
        """The conversation as ids, cut where an answer begins and after the control token that ends it.

        An answer is encoded apart from what precedes it, as it is when the model generates.
        """
        pieces: list[Piece] = []
        run = ""  # plain text not yet encoded
        answering = False

        def flush(*more: int) -> None:
            nonlocal run
            ids = (*self._tokenizer.encode(run), *more)
            run = ""
            if ids:
                pieces.append(Piece(ids, answering))

        for text, turn in self._marked(turns, ask):
            if turn is not None:
                if turn.role == "assistant" and turn.train:
                    flush()
                    answering = True
                run += text
                continue
            for part, special in self._split(text):
                if special is None:
                    run += part
                else:
                    flush(special)
                    answering = False
            if answering:
                # No control token closed the answer within the template's piece; the piece itself is not the answer.
                closing, run = run[len(run) - len(text) :], run[: len(run) - len(text)]
                flush()
                answering, run = False, closing
        flush()
        return pieces

    def _marked(self, turns: Sequence[Turn], ask: bool) -> list[tuple[str, Turn | None]]:
        """The rendered text as pieces: the template's own (None) and each message's."""
        marks = [f"\ue000{number}\ue001" for number in range(len(turns))]
        skeleton = self._render([(turn.role, mark) for turn, mark in zip(turns, marks, strict=True)], ask)
        contents = [turn.content for turn in turns]
        for candidate in (contents, [content.strip() for content in contents]):
            if self._filled(skeleton, marks, candidate) == self.text(turns, ask):
                return self._cut(skeleton, marks, turns, candidate)
        for turn in turns:
            if any(special in turn.content for special in self._tokenizer.specials):
                raise DataError(
                    "this model's chat template rewrites messages, so control tokens in a message cannot be kept apart "
                    f"from its own; remove {[s for s in self._tokenizer.specials if s in turn.content]} from the data"
                )
        return self._located(turns, ask)

    @staticmethod
    def _filled(skeleton: str, marks: Sequence[str], contents: Sequence[str]) -> str:
        for mark, content in zip(marks, contents, strict=True):
            skeleton = skeleton.replace(mark, content)
        return skeleton

    @staticmethod
    def _cut(
        skeleton: str, marks: Sequence[str], turns: Sequence[Turn], contents: Sequence[str]
    ) -> list[tuple[str, Turn | None]]:
        pieces: list[tuple[str, Turn | None]] = []
        for mark, turn, content in zip(marks, turns, contents, strict=True):
            before, found, skeleton = skeleton.partition(mark)
            pieces.append((before, None))
            if found:
                pieces.append((content, turn))
        return [*pieces, (skeleton, None)]

    def _located(self, turns: Sequence[Turn], ask: bool) -> list[tuple[str, Turn | None]]:
        """Pieces of a template that rewrites messages: each answer found by its own text, in order."""
        rest, pieces = self.text(turns, ask), list[tuple[str, Turn | None]]()
        for turn in turns:
            before, found, after = rest.partition(turn.content.strip())
            if not found and turn.role == "assistant":
                raise DataError("this model's chat template changes the assistant's words; its answer cannot be found")
            if found and turn.role == "assistant":
                pieces += [(before, None), (found, turn)]
                rest = after
        return [*pieces, (rest, None)]

    def _split(self, text: str) -> list[tuple[str, int | None]]:
        """The template's own text as plain parts and special tokens."""
        parts: list[tuple[str, int | None]] = []
        specials = self._tokenizer.specials
        while text:
            found = min(((text.find(s), -len(s), s) for s in specials if s in text), default=None)
            if found is None:
                return [*parts, (text, None)]
            start, _, special = found
            if start:
                parts.append((text[:start], None))
            parts.append((special, specials[special]))
            text = text[start + len(special) :]
        return parts

    def _render(self, messages: Sequence[tuple[str, str]], ask: bool) -> str:
        tokens = {
            f"{name}_token": "" if index is None else self._tokenizer.token(index)
            for name, index in (("bos", self._tokenizer.bos), ("eos", next(iter(self._tokenizer.eos), None)))
        }
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=ask,
                **tokens,
            )
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def from_folder(folder: Path, tokenizer: BPETokenizer) -> ChatTemplate:
    """The chat template of a model folder, or `PLAIN` where it has none."""
    separate = folder / "chat_template.jinja"
    if separate.exists():
        return ChatTemplate(separate.read_text(encoding="utf-8"), tokenizer)
    settings = folder / "tokenizer_config.json"
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.exists() else None
    if isinstance(template, list):  # named templates: the one for plain chat
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return ChatTemplate(template, tokenizer) if template else ChatTemplate(PLAIN, tokenizer, own=False)
