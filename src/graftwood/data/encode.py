"""Rows to examples: ids, and which of them are answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graftwood.data.rows import Row, Turn
from graftwood.data.templates import ChatTemplate, Piece
from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.errors import DataError


@dataclass(frozen=True)
class Example:
    """One row as ids. `answer[i]` says whether predicting `ids[i]` counts; the first id is never predicted."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]
    row: Row = field(repr=False)
    cut: int = 0

    @property
    def answer_tokens(self) -> int:
        """How many predictions count."""
        return sum(self.answer[1:])


@dataclass(frozen=True)
class Encoder:
    """Turns rows into examples of at most `max_length` tokens.

    Chat rows go through the template; `completion` rows are the prompt, the completion and the end token, with no
    template, as TRL treats them; `text` rows count every token. A row that is too long loses its end.
    """

    tokenizer: BPETokenizer
    template: ChatTemplate
    max_length: int

    def example(self, row: Row) -> Example:
        """One row's example. Raises: DataError naming a row that is refused or has no answer left."""
        try:
            pieces = self._pieces(row)
        except DataError as error:
            raise DataError(f"{row.file}:{row.line}: {error}") from None
        ids = [index for piece in pieces for index in piece.ids]
        answer = [piece.answer for piece in pieces for _ in piece.ids]
        cut = max(0, len(ids) - self.max_length)
        example = Example(tuple(ids[: self.max_length]), tuple(answer[: self.max_length]), row, cut)
        if example.answer_tokens == 0:
            raise DataError(
                f"{row.file}:{row.line}: no answer token is left within {self.max_length} tokens (the row has "
                f"{len(ids)}); raise --max-length or shorten the prompt"
            )
        return example

    def prompt(self, row: Row) -> list[int]:
        """Ids of everything before the row's last answer."""
        if row.kind == "chat":
            return self.template.prompt(row.turns[:-1])
        return self.begin(row.prompt)

    def answers(self, row: Row, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text where the row's last answer stands, as it is trained, without the token that ends it."""
        if row.kind == "chat":
            return self.template.answers(texts)
        encode = self.tokenizer.encode_after_batch if row.prompt else self.tokenizer.encode_batch
        return encode(texts)

    def begin(self, text: str) -> list[int]:
        """Ids of plain text at the beginning of a sequence."""
        # A base that begins sequences with a token of its own says so in its template; plain text starts with it too.
        start = [self.tokenizer.bos] if self.tokenizer.begins and self.tokenizer.bos is not None else []
        return start + self.tokenizer.encode(text)

    def ask(self, message: str) -> list[int]:
        """Ids of a single user message, ready for the assistant to answer."""
        return self.template.prompt([Turn("user", message, False)])

    def _pieces(self, row: Row) -> list[Piece]:
        if row.kind == "chat":
            return self.template.pieces(row.turns)
        (answer,) = self.answers(row, [row.completion])
        return [Piece(tuple(self.begin(row.prompt)), False), Piece((*answer, *self.tokenizer.eos[:1]), True)]


def encode_rows(encoder: Encoder, rows: Sequence[Row]) -> list[Example]:
    """Examples of all rows. Raises: DataError with every row that cannot be encoded."""
    examples, problems = [], []
    for row in rows:
        try:
            examples.append(encoder.example(row))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise DataError(f"{len(problems)} of {len(rows)} rows cannot be encoded", [*problems[:20], *more])
    return examples


def answer_text(row: Row) -> str:
    """What the row's last answer says."""
    return row.turns[-1].content if row.kind == "chat" else row.completion
