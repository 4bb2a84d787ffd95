"""The command line: verbs to calls of `run.py`. torch is imported when a verb needs it, never for help.

Data goes to stdout, everything else to stderr. An error of the user's is one line on stderr and exit code 2.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from graftwood import __version__, judging, listings, merging, telling, verbs
from graftwood.commands import Commands
from graftwood.errors import ConfigError, GraftError
from graftwood.flags import (
    TECHNIQUE_FLAGS,
    AdapterFlag,
    DeviceFlag,
    DtypeFlag,
    JsonFlag,
    MaxTokens,
    MinP,
    ModelFlag,
    Penalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    anchors,
    assignments,
    check_dry,
    spelled,
    tune_signature,
    unescaped,
)
from graftwood.listings import print_json, show_card
from graftwood.preparation import prepare
from graftwood.prompts import prompts, readable

if TYPE_CHECKING:
    from graftwood.run import Model

# Typer carries its own copy of click in some versions and not in others; this is the class both raise.
UsageError: Any = typer.BadParameter.__base__

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOTHING_SHIPPED = 3  # exit code of a run whose budget no place with a gain kept

app = Commands(
    name="graft",
    help="Tune pre-trained generative models without breaking what they already know.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _tune(**given: Any) -> None:
    from graftwood.config import resolve
    from graftwood.progress import Display
    from graftwood.run import dry_run, run
    from graftwood.training import STOPPED, own_folder

    file, resume, dry, as_json = (given.pop(key) for key in ("file", "resume", "dry_run", "json_"))
    check_dry(dry, resume)
    options = assignments(given.pop("set_"))
    flags = {key: value for key in TECHNIQUE_FLAGS if (value := given.pop(key)) is not None}
    if twice := sorted(options.keys() & flags.keys()):
        raise ConfigError(f"{', '.join(twice)} is given by --set and by its own flag; give it once")
    options |= flags
    held = anchors(given.pop("anchor"))
    given["out"] = given["out"] or own_folder(file)
    config = resolve(file, given | {"options": options or None, "anchors": held or None})
    display = Display()
    if dry:
        expected = dry_run(config, display)
        if as_json:
            print_json(vars(expected))
        return
    done = run(config, display, resume)
    try:
        if as_json:
            print_json(done.report.model_dump())
        else:
            show_card(done.folder, done.report)
    except (BrokenPipeError, SystemExit):  # nobody reads the card; what came of the run is said all the same
        _drop_stdout()
    choice, stopped = done.report.choice, done.report.chosen.stopped == STOPPED
    nothing = choice if choice is not None and choice.dial is None else None
    if nothing is not None:
        yet = " yet" if stopped else ""
        display.say(f"nothing is shipped{yet}: {nothing.why}" + (f"; {nothing.price}" if nothing.price else ""))
    if stopped:
        display.say(f"stopped early; go on with: graft tune {done.folder}/run.toml --resume")
        raise typer.Exit(130)
    if nothing is not None:
        raise typer.Exit(NOTHING_SHIPPED)


def _register_tune() -> None:
    signature = tune_signature()
    _tune.__signature__ = signature  # type: ignore[attr-defined]
    _tune.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    _tune.__doc__ = "Tune a model on rows and report what it gained, kept and memorised."
    app.command("tune")(_tune)


_register_tune()
verbs.register(app)
listings.register(app)
judging.register(app)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")


def _sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Sampling` out of a verb's flags."""
    return {name: flags[name] for name in SAMPLING} | {"stop": tuple(map(unescaped, flags["stop"] or ()))}


@app.command()
def generate(
    prompt: Annotated[Optional[list[str]], typer.Argument(help="prompts; without one, --file or stdin")] = None,  # noqa: UP045
    model: ModelFlag = "smollm2-135m",
    adapter: AdapterFlag = None,
    file: Annotated[Optional[Path], typer.Option("--file", "-f", help="one prompt a line, or .jsonl rows")] = None,  # noqa: UP045
    chat: Annotated[bool, typer.Option("--chat", help="each prompt is a message to answer")] = False,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    max_tokens: MaxTokens = 256,
    json_: JsonFlag = False,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
) -> None:
    """Continue prompts, or answer them with --chat. One prompt is streamed, several run as a batch."""
    sampling = _sampling(locals())
    given = prompts(prompt, file)
    _check(sampling)
    opened = _open(model, adapter, device, dtype)
    if chat or not all(isinstance(asked, str) for asked in given):
        _tell_template(opened)
    if len(given) == 1 and not json_:
        _said(opened.stream(given[0], chat=chat, **sampling))
        return
    for asked, done in zip(given, opened.complete(given, chat=chat, **sampling), strict=True):
        if json_:
            print_json({"prompt": asked, "text": done.text, "finish": done.finish, "tokens": len(done.ids)}, line=True)
        else:
            print(done.text)


def _check(sampling: dict[str, Any]) -> None:
    """Raises: ConfigError for what is out of range, before a model is fetched."""
    from graftwood.generate.sampling import Sampling

    Sampling(**sampling)


def _tell_template(model: Model) -> None:
    """A conversation is worded by the base's template, so a base without one is told of."""
    if not model.base.template.own:
        print(f"{model.name} has no chat template; messages are asked as User: ... Assistant: ...", file=sys.stderr)


@app.command()
def chat(
    model: ModelFlag = "smollm2-135m",
    adapter: AdapterFlag = None,
    system: Annotated[Optional[str], typer.Option("--system", help="what the assistant is told first")] = None,  # noqa: UP045
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.1,
    stop: Stop = None,
    seed: Seed = 0,
    max_tokens: MaxTokens = 512,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
) -> None:
    """Talk with a model. /new starts over, /exit or end-of-file leaves."""
    sampling = _sampling(locals())
    _check(sampling)
    first = [{"role": "system", "content": readable(system, "--system")}] if system else []
    opened = _open(model, adapter, device, dtype)
    _tell_template(opened)
    messages = list(first)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            return
        if line.strip() == "/new":
            messages = list(first)
        elif line.strip():
            try:
                asked = {"role": "user", "content": readable(line.strip(), "the message")}
                answer = _said(opened.stream_chat([*messages, asked], **sampling))
            except GraftError as error:
                print(f"graft: {error}; the message is dropped, /new starts over", file=sys.stderr)
                continue
            messages += [asked, {"role": "assistant", "content": answer}]


def _said(pieces: Iterator[str]) -> str:
    """An answer, shown as it comes."""
    answer = ""
    for piece in pieces:
        answer += piece
        print(piece, end="", flush=True)
    print()
    return answer


merging.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = (
        False
    ),
) -> None:
    pass


def _open(model: str, adapter: Path | None, device: str, dtype: str) -> Model:
    from graftwood.run import load

    return load(model, adapter, device, dtype)


def main() -> None:
    """Entry point of `graft`."""
    prepare(briefly=sys.argv[1:2] in (["generate"], ["chat"], ["pretrain"]))
    _open_streams()
    sys.exit(guarded(_command))


def _command() -> Any:
    try:
        code = app(spelled(sys.argv[1:]), prog_name="graft", standalone_mode=False)
    except SystemExit:  # asked not to exit, typer does so for one reason, which can only be stdout
        raise BrokenPipeError from None
    try:
        sys.stdout.flush()  # what cannot be written must be said here, not when the interpreter ends
    except BrokenPipeError:
        _drop_stdout()
    return code


def _open_streams() -> None:
    """A closed stream reads and writes nothing; a character that the terminal lacks is written as `?`, one that is no
    character is read as a lone surrogate.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.stderr = telling.stderr()
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What comes from a file or a program is UTF-8; where it is not, that is said where it is read.
        sys.stdin.reconfigure(encoding=None if sys.stdin.isatty() else "utf-8", errors="surrogateescape")


def _drop_stdout() -> None:
    """What is left to write goes nowhere: the interpreter would try it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _asked(error: Any) -> str:
    """The command that was not understood, as far as its verb."""
    words, context = [], error.ctx
    while context is not None and context.parent is not None:
        words.append(str(context.info_name))
        context = context.parent
    return " ".join(("graft", *reversed(words)))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; a user's error becomes one line on stderr and an exit code, a bug keeps its traceback."""
    try:
        code = command()
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return error.exit_code
    except UsageError as error:
        print(f"graft: {error.format_message()} ({_asked(error)} --help lists what there is)", file=sys.stderr)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        print("graft: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            fix = "rows and questions are read from files, give the path of one"
            print(f"graft: {str(error.filename)[:60]}... is too long for the name of a file; {fix}", file=sys.stderr)
            return 2
        if error.errno not in _FULL:
            raise
        _drop_stdout()
        print(f"graft: cannot write: {error.strerror}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0
