"""A run from text to a model: corpus and sizes, forecast, training, the model folder; new models and continued ones.

The loop is tuning's: the technique is `full`, the rows are windows of the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from graftwood.base import Base
from graftwood.checkpoint import save_model
from graftwood.config import RUN_FILE, PretrainConfig, save_toml
from graftwood.continued import Examination
from graftwood.corpora import prepare_corpus
from graftwood.data.batch import Examples
from graftwood.data.corpus import TOKENIZER, TRAIN, VALID, Corpus, Stream, Windows, open_corpus, verify
from graftwood.data.prepare import BEGUN, finished
from graftwood.data.templates import from_folder as read_template
from graftwood.data.tokenizers.bpe import from_folder
from graftwood.data.tokenizers.train import KINDS
from graftwood.errors import ConfigError, DataError
from graftwood.evals.card import Chosen
from graftwood.files import atomic_folder, expanded, folder_bytes, sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.progress import Display, duration, size
from graftwood.runtime import Place, advice, machine, peak_memory_bytes, place
from graftwood.scaling import Schedule, Setting, budget, optimiser, sizes
from graftwood.technique import TECHNIQUES
from graftwood.train.forecast import Forecast, forecast
from graftwood.train.loop import Evaluated, Plan, Trainer
from graftwood.training import check_base, check_same, drive

BETAS = (0.9, 0.95)  # of AdamW: Brown et al. 2020, arXiv 2005.14165, appendix B
NOTHING = Examples(())
_RESIDUAL = ("o_proj.weight", "down_proj.weight")
_OF_TOKENS = ("tokenizer", "vocab")
_OF_BASE = ("depth", "params", "layers", "width", "heads", "kv_heads", "feed_forward", "head", *_OF_TOKENS)
_OF_CORPUS = (*_OF_TOKENS, "separator", "held_out")


@dataclass(frozen=True)
class Job:
    """A run that is ready to start. `bits_a_nat` turns validation loss (nats a token) into bits a byte of text."""

    config: PretrainConfig
    base: Base
    corpus: Corpus
    plan: Plan
    train: Windows
    valid: Windows | None
    bits_a_nat: float
    settings: dict[str, Setting]


@dataclass(frozen=True)
class Result:
    """What a run came to; `pretrain.json` holds it."""

    created: str
    folder: str
    parameters: int
    steps: int
    stopped: str
    tokens: int
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    forecast_memory_bytes: int
    valid_loss: float | None
    bits_per_byte: float | None
    best_step: int
    sample: str
    settings: dict[str, dict[str, Any]]
    machine: dict[str, str | int]


def ready_corpus(config: PretrainConfig, base: Base | None, out: Path, display: Display, resume: bool) -> Corpus:
    """The corpus named by the configuration, prepared below the run folder where it is text, and found undamaged.

    A run that goes on reads what it began with, whatever became of the text.

    Raises: DataError for a damaged shard, ConfigError for a corpus that another tokenizer encoded.
    """
    given = Path(config.data)
    if (given / BEGUN).exists():
        corpus = open_corpus(given)
    elif resume and (begun := finished(out / "corpus")) is not None:
        corpus = begun
        display.say(f"{corpus.folder} as the run began with it")
    else:
        tokenizer = str(base.folder) if base is not None else config.tokenizer
        corpus = prepare_corpus(
            [config.data], out / "corpus", display, tokenizer, config.vocab,
            run=out, separator=config.separator, held_out=config.held_out, seed=config.seed,
        )  # fmt: skip
    with display.bytes("checking shards", folder_bytes(corpus.folder)) as advance:
        verify(corpus, advance)
    if base is not None and base.tokenizer.fingerprint != corpus.fingerprint:
        raise ConfigError(
            f"{corpus.folder} was encoded by another tokenizer ({corpus.fingerprint[:12]}) than {base.name} has "
            f"({base.tokenizer.fingerprint[:12]}); prepare it with --tokenizer {base.source}"
        )
    return corpus


def new_base(config: PretrainConfig, corpus: Corpus, model: ModelConfig, out: Path) -> Base:
    """A model with random weights and the corpus's tokenizer; what it is opened with stands in `start/`.

    Raises: ConfigError where something else stands there.
    """
    architecture = ARCHITECTURES.get(model.architecture)
    tokenizer = from_folder(corpus.folder / TOKENIZER)
    folder = out / "start"
    own = {"config.json", *(file.name for file in (corpus.folder / TOKENIZER).iterdir())}
    if strange := sorted(file.name for file in folder.glob("*") if file.name not in own):
        raise ConfigError(
            f"{folder} would be replaced, and {strange[0]} in it is nothing that a run wrote; give another folder with "
            "--out"
        )
    with storage(f"write {folder}"), atomic_folder(folder) as work:
        for file in (corpus.folder / TOKENIZER).iterdir():
            (work / file.name).write_bytes(file.read_bytes())
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": list(tokenizer.eos), "pad_token_id": tokenizer.pad}
        write_json(work / "config.json", architecture.write(model) | ids)
    where = place(config.device, config.dtype)
    decoder = Decoder(architecture, model)
    initialise(decoder, config.seed)
    decoder.to(where.device).compute_dtype = where.dtype
    fingerprint = sha256_text("new", repr(model), corpus.fingerprint, str(config.seed))
    source = str((out / "model").resolve())
    return Base(out.name, source, folder, fingerprint, decoder, tokenizer, read_template(folder, tokenizer), None)


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Random weights; what is added to the residual stream begins smaller the more blocks add to it.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    decoder.initialise(seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith(_RESIDUAL):
            parameter.mul_((2 * decoder.config.layers) ** -0.5)


def prepare(config: PretrainConfig, base: Base | None, out: Path, display: Display, resume: bool = False) -> Job:
    """Everything before the first step, each value told with its source.

    Raises: DataError for a corpus that is damaged or shorter than a window; ConfigError for sizes that do not fit, or
    for options that the base or the corpus decides, or where another run is resumed.
    """
    _check_read(config, base)
    config = _lasting(config, base)
    if resume:
        check_same(config, out / RUN_FILE)
    corpus = ready_corpus(config, base, out, display, resume)
    settings: dict[str, Setting] = {}
    if base is None:
        model, settings = sizes(config, corpus.vocab_size)
        base = new_base(config, corpus, model, out)
    positions = base.decoder.config.max_positions
    context = config.context or min(positions, 1024)
    if context > positions:
        raise ConfigError(f"{base.name} has {positions:,} positions; give --context up to that, not {context:,}")
    if corpus.tokens[TRAIN] <= context:
        raise DataError(
            f"{corpus.folder} has {corpus.tokens[TRAIN]:,} training tokens, fewer than one window of {context}; add "
            f"text, or give --context {max(8, corpus.tokens[TRAIN] // 4)}"
        )
    parameters = count_parameters(base.decoder.parameters())
    schedule = budget(config, parameters, corpus.tokens[TRAIN], context)
    settings |= {
        "tokens": schedule.tokens, "batch tokens": schedule.batch_tokens, "learning rate": schedule.learning_rate,
    }  # fmt: skip
    plan, train = plan_windows(config, schedule, corpus.stream(TRAIN), context)
    valid = Windows(corpus.stream(VALID), context, context, config.valid_tokens) if corpus.tokens[VALID] > 1 else None
    TECHNIQUES.get("full").parse({}).apply(base.decoder, config.seed)
    display.say(f"{'a new model' if config.model is None else base.name}: {parameters:,} parameters")
    for name, setting in settings.items():
        display.say(f"  {name} {setting.value:,.6g}: {setting.source}")
    display.say("  optimiser {}: {}".format(*optimiser(config)))
    return Job(config, base, corpus, plan, train, valid, _bits_a_nat(corpus, valid, base.tokenizer.bos), settings)


def _lasting(config: PretrainConfig, base: Base | None) -> PretrainConfig:
    """The configuration with every path whole, so that its run file works from any folder."""
    paths = {key: Path(getattr(config, key)) for key in ("data", "tokenizer")}
    kind = config.tokenizer in KINDS  # whatever a folder of that name holds
    whole = {
        key: str(path.resolve()) for key, path in paths.items() if path.exists() and not (key == "tokenizer" and kind)
    }
    if config.model is not None and base is not None:  # a run may have an adapter, without which it is its bare base
        run = expanded(config.model)
        whole["model"] = str(run.resolve()) if (run / "run.toml").is_file() else base.source
    return config.model_copy(update=whole)


def _check_read(config: PretrainConfig, base: Base | None) -> None:
    """Raises: ConfigError naming every option that differs from its default and would not be read."""
    decided: dict[str, tuple[str, ...]] = {} if base is None else {f"the base {base.name}": _OF_BASE}
    if (Path(config.data) / BEGUN).exists():
        decided[f"the prepared corpus {config.data}"] = _OF_CORPUS
    defaults = {name: field.default for name, field in PretrainConfig.model_fields.items()}
    problems = []
    for who, names in decided.items():
        if given := [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != defaults[name]]:
            problems.append(f"{who} decides {', '.join(given)}")
    if problems:
        raise ConfigError(f"{'; '.join(problems)}: what is given would not be read; leave it out")


def plan_windows(config: PretrainConfig, schedule: Schedule, stream: Stream, context: int) -> tuple[Plan, Windows]:
    """The training plan and its windows, which begin so close together that none is read twice."""
    batch = max(1, round(schedule.batch_tokens.value / context))
    steps = max(1, round(schedule.tokens.value / (batch * context)))
    # So that there are as many as are read: the first begins at the first token, the last a window before the end.
    apart = (len(stream) - 1 - context) // max(1, steps * batch - 1)
    windows = Windows(stream, context, max(1, min(context, apart)))
    plan = Plan(
        learning_rate=schedule.learning_rate.value,
        weight_decay=config.weight_decay,
        batch=batch,
        epochs=steps / math.ceil(len(windows) / batch),
        seed=config.seed,
        clip=config.clip,
        warmup_share=config.warmup,
        token_budget=max(context, min(config.token_budget, batch * context)),
        evaluations=config.evaluations,
        patience=10**9,
        save_seconds=config.save_seconds,
        save_steps=config.save_steps,
        decay_share=config.decay,
        optimiser=optimiser(config)[0],
        betas=BETAS,
        z_loss=config.z_loss,
        average_half_life=config.average,
    )
    return plan, windows


def _bits_a_nat(corpus: Corpus, valid: Windows | None, bos: int | None) -> float:
    """Bits a byte for each nat a token: independent of the tokenizer, so that models with different ones compare.

    What begins a document stands for no byte of it and is predicted by none.
    """
    if valid is None:
        return 0.0
    begun = 0 if bos is None else corpus.stream(VALID).beginning_with(bos)
    return (corpus.tokens[VALID] - begun) / corpus.bytes[VALID] / math.log(2)


def preview(job: Job, display: Display) -> Forecast:
    """Say what training will take."""
    with display.stage("forecast"):
        expected = forecast(job.base.decoder, job.train, job.valid or NOTHING, job.plan)
    passes = expected.tokens / job.corpus.tokens[TRAIN]
    display.say(
        f"forecast: {expected.steps:,} steps, {expected.tokens:,} tokens ({passes:.2g} passes over the corpus) at "
        f"{expected.tokens_per_second:,.0f} tokens/s: about {duration(expected.seconds)}, "
        f"{size(expected.memory_bytes)} of memory"
    )
    if hint := advice(Place(job.base.decoder.device, job.base.decoder.compute_dtype)):
        display.say(hint)
    return expected


def execute(job: Job, expected: Forecast, out: Path, display: Display, resume: bool) -> Result:
    """Train and leave the model, the log and the samples in `out`."""
    check_base(job.base, out, resume)
    with storage(f"write {out}"):
        save_toml(job.config.model_copy(update={"out": str(out.resolve())}), out / RUN_FILE)
    exam = _examination(job, display)
    gauge = exam.gauge if exam is not None else None
    trainer = Trainer(job.base.decoder, job.train, job.valid or NOTHING, job.plan, out / "checkpoints", gauge)
    write = _writer(job)

    def remark(event: Evaluated) -> dict[str, Any]:
        bits = None if event.valid_loss is None else event.valid_loss * job.bits_a_nat
        with trainer.optimiser.averaged():
            sample = write()
        if bits is not None:
            display.say(f"  {bits:.4f} bits a byte")
        if sample:
            display.say(f"  {sample!r}")
        return {"bits_per_byte": bits, "sample": sample}

    curve = drive(trainer, out, display, resume, remark)
    job.base.decoder.requires_grad_(False).eval()
    save_model(job.base, out / "model")
    result = _result(job, trainer, expected, out, write())
    with storage(f"write {out}"):
        write_json(out / "pretrain.json", asdict(result))
    if exam is not None:
        exam.report(trainer, _chosen(job, trainer), job.config.data, curve, out)
    return result


def _examination(job: Job, display: Display) -> Examination | None:
    """What a base that goes on learning can do now; a new model can do nothing yet."""
    if job.config.model is None:
        return None
    return Examination(job.base, job.train, job.valid, job.config.seed, display)


def _writer(job: Job) -> Callable[[], str]:
    """What writes a sample with the weights as they are; the same seed every time, so that samples compare."""
    tokenizer, count = job.base.tokenizer, job.config.sample_tokens
    start = job.base.encoder().begin(job.config.sample_prompt) or [job.base.document_start()]
    room = job.base.decoder.config.max_positions - len(start)
    sampling = Sampling(temperature=0.8, seed=job.config.seed, max_tokens=max(1, min(count, room)))

    def write() -> str:
        if not count:
            return ""
        training = job.base.decoder.training
        engine = Engine(job.base.decoder.eval(), tokenizer.eos, tokenizer)
        (done,) = engine.generate([start], sampling)
        job.base.decoder.train(training)
        return job.config.sample_prompt + done.text

    return write


def _result(job: Job, trainer: Trainer, expected: Forecast, out: Path, sample: str) -> Result:
    progress = trainer.progress
    loss = progress.best_loss
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=str(out),
        parameters=count_parameters(job.base.decoder.parameters()),
        steps=progress.step,
        stopped=progress.ended or "stopped by you",
        tokens=progress.tokens,
        train_seconds=progress.train_seconds,
        tokens_per_second=progress.tokens / max(progress.train_seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(job.base.decoder.device),
        forecast_memory_bytes=expected.memory_bytes,
        valid_loss=loss,
        bits_per_byte=None if loss is None else loss * job.bits_a_nat,
        best_step=progress.best_step,
        sample=sample,
        settings={name: asdict(setting) for name, setting in job.settings.items()},
        machine=machine(),
    )


def _chosen(job: Job, trainer: Trainer) -> Chosen:
    technique, (kind, why) = TECHNIQUES.get("full"), optimiser(job.config)
    return Chosen(
        technique=technique.title,
        settings={name: f"{setting.value:,.6g}" for name, setting in job.settings.items()}
        | {"optimiser": kind, "seed": str(job.plan.seed)},
        reasons={name: setting.source for name, setting in job.settings.items()} | {"optimiser": why},
        trained_parameters=count_parameters(trainer.trained.values()),
        total_parameters=count_parameters(job.base.decoder.parameters()),
        stopped=trainer.progress.ended or "stopped by you",
        best_step=trainer.progress.best_step,
        steps=trainer.progress.step,
        epochs=trainer.progress.tokens / job.corpus.tokens[TRAIN],
    )
