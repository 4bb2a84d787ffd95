"""The verbs that make a model from text: `tokenizer train`, `prepare`, `pretrain`, and on paper `plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from graftwood.commands import Commands
from graftwood.flags import JsonFlag, check_dry, pretrain_signature, seed_option, unescaped
from graftwood.listings import print_json

Given = Annotated[
    list[str], typer.Argument(help="text or JSONL files (.gz and .zst too), folders, patterns, - for stdin")
]
Vocab = Annotated[
    str | None, typer.Option("--vocab", help="tokens of a new bpe vocabulary; by default by the size of the text")
]
Separator = Annotated[str | None, typer.Option("--separator", help="what stands between documents of a text file")]
HeldOut = Annotated[float, typer.Option("--held-out", help="share that is held out, at most 10 MB")]
Seed = Annotated[int, seed_option("seed of what is held out")]

tokenizer = Commands(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(tokenizer, name="tokenizer")
    app.command("prepare")(prepare)
    signature = pretrain_signature()
    _pretrain.__signature__ = signature  # type: ignore[attr-defined]
    _pretrain.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    _pretrain.__doc__ = "Make a model from text, or go on training one on text."
    app.command("pretrain")(_pretrain)
    app.command("plan")(plan)


@tokenizer.command("train")
def train_tokenizer(
    data: Given,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write")],
    kind: Annotated[Literal["bpe", "bytes", "chars"], typer.Option("--kind", help="bpe, bytes or chars")] = "bpe",
    vocab: Vocab = None,
    separator: Separator = None,
    held_out: HeldOut = 0.1,
    seed: Seed = 0,
    json_: JsonFlag = False,
) -> None:
    """Make a tokenizer from text and report bytes a token on text it was not made from."""
    from graftwood.corpora import train_tokenizer as make
    from graftwood.progress import Display

    told = make(data, out, Display(), kind, _count(vocab), separator=_text(separator), held_out=held_out, seed=seed)
    if json_:
        print_json(told)
    else:
        print(f"{out}: {told['vocab_size']:,} tokens")
        for key in ("training", "held_out"):
            if told[f"{key}_bytes_a_token"] is not None:
                print(f"{key.replace('_', '-')} text: {told[f'{key}_bytes_a_token']} bytes a token")


def prepare(
    data: Given,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the corpus")],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", help="bpe, bytes or chars made from the data; a folder or a model to take one from"
        ),
    ] = "bpe",
    vocab: Vocab = None,
    separator: Separator = None,
    duplicates: Annotated[
        Literal["near", "exact", "none"], typer.Option("--duplicates", help="which repeats go: near, exact or none")
    ] = "near",
    held_out: HeldOut = 0.1,
    seed: Seed = 0,
    shard_bytes: Annotated[str, typer.Option("--shard-bytes", help="text a shard holds, about")] = "64M",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="processes; by default all cores")] = None,
    json_: JsonFlag = False,
) -> None:
    """Turn text into checksummed shards that training reads. Given again, it goes on where it was stopped."""
    from graftwood.corpora import prepare_corpus
    from graftwood.progress import Display

    corpus = prepare_corpus(
        data, out, Display(), tokenizer, _count(vocab), workers,
        separator=_text(separator), removal=duplicates, held_out=held_out, seed=seed, shard_bytes=_count(shard_bytes),
    )  # fmt: skip
    if json_:
        print_json(asdict(corpus))


def _pretrain(**given: Any) -> None:
    from graftwood.config import PretrainConfig, read_config
    from graftwood.progress import Display
    from graftwood.run import dry_pretrain, pretrain_with
    from graftwood.training import own_folder

    file, resume, dry, as_json = (given.pop(key) for key in ("file", "resume", "dry_run", "json_"))
    check_dry(dry, resume)
    given["out"] = given["out"] or own_folder(file)
    config = read_config(PretrainConfig, file, given | {"separator": _text(given["separator"])})
    display = Display()
    if dry:
        told: Any = dry_pretrain(config, display)
    else:
        told = pretrain_with(config, display, resume)
    if as_json:
        print_json(asdict(told))
    elif not dry and told.bits_per_byte is not None:
        print(f"{told.bits_per_byte:.4f} bits a byte on held-out text ({told.valid_loss:.4f} nats a token)")
    if not dry and (Path(told.folder) / "report.json").exists():
        display.say(f"the report card: graft show {told.folder}")
    if not dry and told.stopped == "stopped by you":
        display.say("stopped early; go on with the same command and --resume")
        raise typer.Exit(130)


def plan(
    model: Annotated[str, typer.Argument(help="a published model, such as gpt3-175b")],
    gpus: Annotated[str, typer.Option("--gpus", help="how many and which, such as 1024xA100-80GB")],
    tokens: Annotated[str, typer.Option("--tokens", help="tokens to train on")] = "300B",
    batch_tokens: Annotated[str, typer.Option("--batch-tokens", help="tokens of an optimiser's step")] = "4M",
    sequence: Annotated[
        int | None, typer.Option("--sequence", min=1, help="tokens of a sequence; by default all")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Say on paper what pre-training a published model takes on a cluster: memory, layout, speed, time."""
    from graftwood import planner
    from graftwood.errors import ConfigError

    number, _, gpu = gpus.partition("x")
    if not number.isdecimal() or not int(number) or not gpu:
        raise ConfigError(f"--gpus {gpus} is not a number and a GPU; write 1024xA100-80GB or the like")
    shape, positions = planner.published_shape(model)
    length = sequence or positions
    wanted, step = float(_count(tokens) or 0), float(_count(batch_tokens) or 0)
    found = planner.plan(shape, int(number), gpu, length, step, wanted)
    if json_:
        print_json(asdict(found) | {"parameters": shape.parameters, "sequence": length})
        return
    layout, days = found.layout, found.seconds / 86_400
    low, high = days * 2**-planner.SPREAD, days * 2**planner.SPREAD
    kept = "every layer's activations made again" if layout.recompute else "attention's scores made again"
    print(f"{model}: {shape.parameters / 1e9:,.1f} B parameters, sequences of {length:,}, {tokens} tokens")
    print(f"layout: tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}, {kept}")
    print(f"batch: {found.batch_tokens:,} tokens in micro-batches of one sequence")
    print(
        f"memory of a GPU: {found.memory / 1e9:.1f} GB (states {found.states / 1e9:.1f}, activations "
        f"{found.activations / 1e9:.1f}, logits {found.logits / 1e9:.1f})"
    )
    print(
        f"speed: {found.tokens_per_second / layout.gpus:,.0f} tokens/s a GPU, {found.tokens_per_second:,.0f} in all, "
        f"{found.share_of_peak:.0%} of the peak"
    )
    print(f"time: {days:,.1f} days ({low:,.1f} to {high:,.1f} as published runs spread)")


def _count(given: str | None) -> int | None:
    from graftwood.config import count
    from graftwood.errors import ConfigError

    if given is None:
        return None
    value = count(given)
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise ConfigError(f"{given!r} is not a count; write 4096, 64M or the like")
    return int(str(value))


def _text(given: str | None) -> str | None:
    return None if given is None else unescaped(given)
