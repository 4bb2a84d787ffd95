"""How the command line takes its words: nothing empty; a verb's first sentence is listed whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

Verb = TypeVar("Verb", bound=Callable[..., Any])

# Where an empty text says something: no system message, samples that begin with nothing.
_MAY_BE_EMPTY = ("system", "sample_prompt")
# Where white space says something: what ends an answer or stands between documents.
_MAY_BE_BLANK = ("stop", "separator")
_WHOLE = 10_000  # characters; the list of verbs wraps what is longer than its line


class Command(TyperCommand):
    """A verb that refuses an empty value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line. Raises: UsageError for what is given and empty."""
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in dict.fromkeys(order):
            name = (*(flag for flag in parameter.opts if flag.startswith("--")), *parameter.opts)[0]
            value = given.get(parameter.name)
            values = value if isinstance(value, list | tuple) else [value]
            blank = parameter.name in _MAY_BE_BLANK
            empty = any(isinstance(one, str) and not (one if blank else one.strip()) for one in values)
            if empty and parameter.name not in _MAY_BE_EMPTY:
                ctx.fail(f"{name} is empty; give it a value or leave it out.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a Ctrl-C comes out as `Abort`, whatever typer's version makes of it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def get_short_help_str(self, limit: int = _WHOLE) -> str:
        """The first sentence, uncut."""
        return super().get_short_help_str(max(limit, _WHOLE))


class Commands(typer.Typer):
    """A group of such verbs."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Verb], Verb]:
        """As typer's, the verb a `Command`."""
        return super().command(name, **{"cls": Command} | settings)
