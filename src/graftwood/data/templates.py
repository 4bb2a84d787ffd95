"""Chat templates: conversations to ids, with the text of users kept apart from the template's own control tokens.

A template is untrusted code from a model file: it is rendered in jinja2's sandbox. What people wrote is untrusted text:
`<|im_end|>` inside a message must stay text. So the template is rendered with a placeholder for each message, and only
the template's own pieces may yield special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graftwood.data.rows import Turn
from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.errors import DataError, ModelError

# For a base without a template of its own: plain words, no token that the vocabulary may lack. A prompt must not end in
# a blank, which byte-pair vocabularies keep at the start of the next word.
PLAIN = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)

DATE = datetime(2025, 1, 1)  # of whatever is trained on or measured
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Piece:
    """Consecutive ids and whether an answer's loss counts them."""

    ids: tuple[int, ...]
    answer: bool


class _Generation(Extension):
    """The tag some templates put around what the assistant says. Answers are found without it, so it only encloses."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A jinja2 template and the tokenizer whose control tokens it speaks.

    Where it writes the date, that is `DATE`: base and tuned model are asked the same, and a run goes on another day.
    """

    def __init__(
        self, source: str, tokenizer: BPETokenizer, own: bool = True, now: Callable[[], datetime] = lambda: DATE
    ) -> None:
        self.source = source
        self.own = own
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: now().strftime(form)}
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"the model's chat template does not parse: {error}") from None

    @cached_property
    def today(self) -> ChatTemplate:
        """The same for who is answered now: it writes the date that it is."""
        return ChatTemplate(self.source, self._tokenizer, self.own, datetime.now)

    def text(self, turns: Sequence[Turn], ask: bool = False) -> str:
        """The conversation as the template writes it; with `ask`, ready for the assistant to answer.

        Raises: DataError with the template's own words when it refuses the conversation.
        """
        return self._render([(turn.role, turn.content) for turn in turns], ask)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids up to where the assistant begins to answer: what an answer to these turns is trained after.

        That is not always what the template writes when asked for an answer: some begin an answer with an empty thought
        or the name of a channel.
        """
        pieces = self._cut(self._until_answer(turns))
        return [index for piece in pieces[:-1] for index in piece.ids]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as the answer to a `prompt`, as it is trained, without the control token that ends it."""
        lead, after_text = self._opening
        encode = self._tokenizer.encode_after_batch if after_text else self._tokenizer.encode_batch
        return encode([lead + text for text in texts])

    def opening(self) -> list[int]:
        """Ids up to where a user's first message begins."""
        before = self._marked([Turn("user", "-", False)])[0][0]
        ids: list[int] = []
        for part, special in self._split(before):
            ids += self._tokenizer.encode(part) if special is None else [special]
        return ids

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The conversation as ids, cut where an answer begins and after the control token that ends it.

        An answer is encoded apart from what precedes it, as it is when the model generates.
        """
        return self._cut(self._marked(turns))

    def _cut(self, marked: Sequence[tuple[str, Turn | None]]) -> list[Piece]:
        pieces: list[Piece] = []
        run = ""  # plain text not yet encoded
        answering = after_text = False

        def flush(*more: int) -> None:
            nonlocal run, after_text
            encode = self._tokenizer.encode_after if after_text else self._tokenizer.encode
            ids = (*encode(run), *more)
            after_text = not more and (after_text or bool(run))
            run = ""
            if ids or answering:
                pieces.append(Piece(ids, answering))

        for text, turn in marked:
            if turn is not None:
                if turn.role == "assistant" and turn.train:
                    lead = self._opening[0] if run.endswith(self._opening[0]) else ""
                    run = run.removesuffix(lead)
                    flush()
                    answering, run = True, lead
                    after_text = after_text or bool(lead)  # its own blank is there, so none is put before it
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

    def _until_answer(self, turns: Sequence[Turn]) -> list[tuple[str, Turn | None]]:
        """The rendered text as pieces, up to and with some answer to these turns."""
        answer = Turn("assistant", "-", True)
        marked = self._marked([*turns, answer])
        return marked[: 1 + next(place for place, (_, turn) in enumerate(marked) if turn is answer)]

    @cached_property
    def _opening(self) -> tuple[str, bool]:
        """Blanks that begin an answer, and whether it is read on from them or other text, not from a control token.

        The blanks are those that the template writes before an answer and not when asked for one. They are the
        answer's: words begin with them in most vocabularies, and whoever asks by the template alone asks without them.
        """
        asked = [Turn("user", "-", False)]
        try:
            *before, _ = self._until_answer(asked)
            question = self.text(asked, ask=True)
        except DataError:  # such a template wants another conversation, and says so when it gets one
            return "", True
        written = "".join(text for text, _ in before)
        more = written.removeprefix(question) if written.startswith(question) else ""
        lead = more if more.isspace() else ""
        parts = self._split(before[-1][0].removesuffix(lead))
        return lead, bool(lead) or not parts or parts[-1][1] is None

    def _marked(self, turns: Sequence[Turn]) -> list[tuple[str, Turn | None]]:
        """The rendered text as pieces: the template's own (None) and each message's.

        The template is rendered twice, once with a placeholder for each message. What stands between the placeholders
        is the template's own; what stands between those parts in the real text is what it made of the messages.
        """
        marked = [(turn.role, f"\ue000{number}\ue001") for number, turn in enumerate(turns)]
        first, *rest = _MARK.split(self._render(marked, ask=False))
        text = self.text(turns)
        pieces: list[tuple[str, Turn | None]] = [(first, None)]
        position = len(first)
        for number, own in zip(rest[::2], rest[1::2], strict=True):
            turn = turns[int(number)]
            content = self._written(turn, text, position, own)
            pieces += [(content, turn), (own, None)]
            position += len(content) + len(own)
        if "".join(piece for piece, _ in pieces) != text:
            raise DataError(
                "this model's chat template words itself differently around these messages, so answers cannot be told "
                "apart from it; remove the row or reword its messages"
            )
        if any(turn.train and str(number) not in rest[::2] for number, turn in enumerate(turns)):
            raise DataError(
                "this model's chat template leaves out what the assistant says; give rows of prompt and completion, "
                "which need no template"
            )
        return pieces

    def _written(self, turn: Turn, text: str, start: int, own: str) -> str:
        """What the template made of a message that begins at `start` and is followed by the template's `own` words."""
        content = turn.content
        for candidate in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(candidate + own, start):
                return candidate
        controls = [special for special in self._tokenizer.specials if special in content]
        if controls:
            raise DataError(
                "this model's chat template rewrites messages, so control tokens in a message cannot be kept apart "
                f"from its own; remove {controls} from the data"
            )
        end = text.find(own, start) if own else len(text)
        if end < 0 or (turn.role == "assistant" and text[start:end].strip() != content.strip()):
            raise DataError("this model's chat template changes the assistant's words; its answer cannot be found")
        return text[start:end]

    def _split(self, text: str) -> list[tuple[str, int | None]]:
        """The template's own text as plain parts and special tokens."""
        parts: list[tuple[str, int | None]] = []
        specials = self._tokenizer.specials
        while text:
            found = min(((text.find(s), -len(s), s) for s in specials if s in text), default=None)
            if found is None:
                return [*parts, (text, None)]
            start, _, special = found
            left, right = self._tokenizer.swallows[specials[special]]
            before, text = text[:start], text[start + len(special) :]
            before, text = before.rstrip() if left else before, text.lstrip() if right else text
            if before:
                parts.append((before, None))
            parts.append((special, specials[special]))
        return parts

    def _render(self, messages: Sequence[tuple[str, str]], ask: bool) -> str:
        tokens = {
            f"{name}_token": "" if index is None else self._tokenizer.token(index)
            for name, index in (("bos", self._tokenizer.bos), ("eos", next(iter(self._tokenizer.eos), None)))
        }
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                tools=None,
                documents=None,
                add_generation_prompt=ask,
                **tokens,
            )
        except Exception as error:  # a template is a stranger's program: it may raise anything
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
