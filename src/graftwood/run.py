"""The composition root: the few calls a program needs, each joining the layers below."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from graftwood import pretraining
from graftwood.apart import execute_each, execute_sequence
from graftwood.base import Base, base_outline, open_base
from graftwood.checkpoint import load_adapter, save_model
from graftwood.config import RUN_FILE, PretrainConfig, RunConfig, read_config, read_toml, resolve
from graftwood.data.rows import Turn
from graftwood.draft import IN_MEMORY, draft
from graftwood.errors import ConfigError, ModelError
from graftwood.evals.card import Card
from graftwood.evals.report import read_report
from graftwood.files import check_new, claimed, expanded
from graftwood.generate.engine import Completion, Engine
from graftwood.generate.sampling import Sampling
from graftwood.held import as_held, device_of, held_in
from graftwood.job import Job, prepare, preview
from graftwood.model.decoder import Decoder
from graftwood.model.quantised import quantise
from graftwood.model.weights import fingerprint
from graftwood.pretraining import Result
from graftwood.progress import Display
from graftwood.prompts import Asked
from graftwood.racing import execute_race, preview_race
from graftwood.runtime import DTYPES, check_trains, place
from graftwood.technique import Technique
from graftwood.train.forecast import Forecast
from graftwood.training import STOPPED, as_begun, holds_run, run_folder
from graftwood.tuning import execute

# What runs are called for by options, besides one model on all rows.
_KINDS = {"search": execute_race, "sequence": execute_sequence, "each": execute_each}
_EXPORT = "export it and tune that folder"


@dataclass
class Model:
    """A base, perhaps with an adapter on it, ready to generate or to be tuned."""

    base: Base
    technique: Technique | None = None
    _engine: Engine | None = field(default=None, repr=False)
    _before: tuple[Base, Technique, Callable[[], None]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What the base was asked for by."""
        return self.base.name

    @property
    def merged(self) -> bool:
        """Whether an adapter was folded into the base's weights."""
        return self._before is not None

    def generate(self, prompt: str | Sequence[str], **sampling: Any) -> Any:
        """Continue a prompt, or each of several: a string for a string, a list for a list.

        `sampling` takes the fields of `Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, seed,
        max_tokens, stop. Greedy unless a temperature is given.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [done.text for done in self.complete(prompts, **sampling)]
        return texts[0] if isinstance(prompt, str) else texts

    def complete(self, prompts: Sequence[Asked], chat: bool = False, **sampling: Any) -> list[Completion]:
        """Each prompt continued, or answered as a message with `chat`: text, ids and why it ended.

        A prompt may be a conversation of `{"role", "content"}` messages, which is answered.
        """
        return self.engine.generate([self._ids(text, chat) for text in prompts], Sampling(**sampling))

    def stream(self, prompt: Asked, chat: bool = False, **sampling: Any) -> Iterator[str]:
        """One prompt's continuation or answer, piece by piece."""
        return self.engine.stream(self._ids(prompt, chat), Sampling(**sampling))

    def chat(self, messages: Asked, **sampling: Any) -> str:
        """The assistant's answer to a message, or to a conversation of `{"role", "content"}` messages."""
        return "".join(self.stream_chat(messages, **sampling))

    def stream_chat(self, messages: Asked, **sampling: Any) -> Iterator[str]:
        """`chat`, piece by piece as it is generated."""
        return self.stream(messages, chat=True, **sampling)

    def _ids(self, asked: Asked, chat: bool) -> list[int]:
        if isinstance(asked, str) and not chat:
            return self.base.encoder().begin(asked)
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        turns = [Turn(_role(message["role"]), message["content"], False) for message in messages]
        return self.base.template.today.prompt(turns)

    @property
    def engine(self) -> Engine:
        """The decoding engine over the model as it is now."""
        if self._engine is None:
            self._engine = Engine(self.base.decoder, self.base.tokenizer.eos, self.base.tokenizer)
        return self._engine

    def changed(self) -> None:
        """Forget what was prepared for decoding: the parameters are not what they were."""
        self._engine = None

    def merge(self) -> None:
        """Fold the adapter into the base's weights; the weights as they were are kept for `unmerge`."""
        if self.technique is not None:
            if self.base.decoder.base_precision != "full":
                held = self.base.decoder.base_precision
                raise ConfigError(f"the base is held in {held}, which a merged weight does not fit; load the run anew")
            merged = _another(self.base, self.technique)
            self._before = self.base, self.technique, self.technique.merge(self.base.decoder)
            self.base, self.technique = merged, None
            self.changed()

    def unmerge(self) -> None:
        """Undo `merge`: base and adapter are what they were, to the bit. Raises: ConfigError with nothing merged."""
        if self._before is None:
            raise ConfigError("nothing was merged into this model, so there is nothing to take out")
        self.base, self.technique, back = self._before
        back()
        self._before = None
        self.changed()

    def export(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder that transformers loads, the adapter merged in.

        Raises: ConfigError where the folder holds something already.
        """
        written = expanded(folder)
        check_new(written)
        self.merge()
        save_model(self.base, written)
        return written


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its report and the tuned model."""

    folder: Path
    report: Card
    model: Model


def load(
    model: str | Path = "smollm2-135m", adapter: str | Path | None = None, device: str = "auto", dtype: str = "auto"
) -> Model:
    """Open a base by short name, path, package source or Hugging Face id; or a run folder that `tune` wrote.

    Raises: ModelError when there is no such model; ConfigError for an adapter of another base.
    """
    source, found = run_parts(str(model))
    base = open_base(source, place(device, dtype))
    adapter = adapter or found
    if adapter is None:
        return Model(base)
    folder = expanded(adapter)
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    return Model(base, load_adapter(base, folder))


def tune(
    model: Model | str | Path,
    data: str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]],
    *,
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Tune a model on rows (a file, a folder or a list of dictionaries) and report what it gained, kept and memorised.

    Several files or folders make a mixture, each one a task.

    `options` are the keys of a run file, see `RunConfig`; keys it does not have go to the technique (`rank=32`).
    Raises: DataError for bad rows, ConfigError for bad options.
    """
    files, rows = _given(data)
    own = {key: value for key, value in options.items() if key not in RunConfig.model_fields}
    known = {key: value for key, value in options.items() if key in RunConfig.model_fields}
    known["options"] = {**known.get("options", {}), **own}
    opened = model if isinstance(model, Model) else None
    source = model.base.source if isinstance(model, Model) else str(model)
    config = resolve(None, known | {"model": source, "data": files or IN_MEMORY})
    return run(config, Display(quiet), resume, opened, rows)


def _given(data: Any) -> tuple[list[str], list[Mapping[str, Any]] | None]:
    """What rows are given as: files, or the rows themselves. Raises: ConfigError for anything else, or both."""
    if isinstance(data, Mapping):
        raise ConfigError("data is one row; put it into a list, with others to learn from")
    if hasattr(data, "iterrows"):
        raise ConfigError('data is a table; give its rows, as data.to_dict("records") has them')
    given = [data] if isinstance(data, (str, Path)) else list(data)
    files = [str(one) for one in given if isinstance(one, (str, Path))]
    odd = [type(one).__name__ for one in given if not isinstance(one, (str, Path, Mapping))]
    if odd or (files and len(files) < len(given)):
        kinds = ", ".join(dict.fromkeys(odd)) or "paths and rows"
        raise ConfigError(f"data holds {kinds}; give paths alone, or rows as dictionaries alone")
    return files, None if files else cast(list[Mapping[str, Any]], given)


def run(
    config: RunConfig,
    display: Display,
    resume: bool = False,
    model: Model | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> Run:
    """One run from a resolved configuration; what can be checked without the model is checked before it is opened."""
    check_trains(DTYPES.get(config.dtype), None if model is None else model.base.decoder.compute_dtype)
    out = run_folder(config.out, config.sources, resume)
    with claimed(out, display.say):
        return _run(as_held(config, None if model is None else model.base.decoder), out, display, resume, model, rows)


def _run(
    config: RunConfig,
    out: Path,
    display: Display,
    resume: bool,
    model: Model | None,
    rows: Sequence[Mapping[str, Any]] | None,
) -> Run:
    config = as_begun(config, out / RUN_FILE) if resume else config
    drafted, given = draft(config, rows, _outline(config, model)), model
    model = model or load(config.model, device=config.device, dtype=config.dtype)
    quantise(model.base.decoder, config.base_precision)
    with _kept(given), _resumable(config, out, display):
        job = prepare(drafted, model.base, display)
        job = replace(job, expected=_preview(job, display))
        work = next((kind for asked, kind in _KINDS.items() if getattr(config, asked)), execute)
        card = work(job, out, display, resume)
    nothing = card.choice is not None and card.choice.dial is None
    if nothing or config.search:
        model.base.decoder.take_off()
        model.changed()
        return Run(out, card, model if nothing else load(out, device=config.device, dtype=config.dtype))
    if job.technique.writes_base:
        written = (out / "model").resolve()
        source, print_ = str(written), fingerprint(written)
        model.base = replace(model.base, name=written.parent.name, source=source, folder=written, fingerprint=print_)
    model.technique = None if job.technique.writes_base else job.technique
    model.changed()
    return Run(out, card, model)


@contextmanager
def _kept(model: Model | None) -> Iterator[None]:
    """A user's model is what it was when the block fails; one that was opened for the run is held by nobody."""
    back = None if model is None else model.base.decoder.keepsake()
    try:
        yield
    except BaseException:
        if model is not None and back is not None:
            back()
            model.changed()
        raise


@contextmanager
def _resumable(config: RunConfig, out: Path, display: Display) -> Iterator[None]:
    """Where Ctrl-C ends a run at once it is said how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if not holds_run(out):
            display.say("stopped before the first step; give it again, what the base was asked to the end is kept")
        elif config.data == IN_MEMORY:
            display.say("stopped; go on with resume=True")
        else:
            display.say(f"stopped; go on with: graft tune {out}/run.toml --resume")
        raise


def pretrain(data: str | Path, *, resume: bool = False, quiet: bool = False, **options: Any) -> Result:
    """Make a model from text (a file, a folder, a pattern or a prepared corpus), or go on training `model` on it.

    `options` are the keys of a run file, see `PretrainConfig`; `load(result.folder)` opens the model.

    Raises: DataError for a corpus that cannot be used, ConfigError for bad options.
    """
    config = read_config(PretrainConfig, None, options | {"data": str(data)})
    return pretrain_with(config, Display(quiet), resume)


def pretrain_with(config: PretrainConfig, display: Display, resume: bool = False) -> Result:
    """Text to a model folder, `<out>/model`, which is a base like any other.

    Raises: DataError for a corpus that cannot be used, ConfigError for options that do not fit.
    """
    check_trains(DTYPES.get(config.dtype))
    out = run_folder(config.out, [config.data], resume)
    with claimed(out, display.say):
        job = pretraining.prepare(config, _continued(config), out, display, resume)
        return pretraining.execute(job, pretraining.preview(job, display), out, display, resume)


def dry_pretrain(config: PretrainConfig, display: Display) -> Forecast:
    """What pre-training would do and take; the corpus is prepared, nothing is trained."""
    check_trains(DTYPES.get(config.dtype))
    out = run_folder(config.out, [config.data], resume=False)
    with claimed(out, display.say):
        return pretraining.preview(pretraining.prepare(config, _continued(config), out, display), display)


def _continued(config: PretrainConfig) -> Base | None:
    """The base that is to go on learning, an adapter folded in."""
    if config.model is None:
        return None
    model = load(config.model, device=config.device, dtype=config.dtype)
    model.merge()
    return model.base


def dry_run(config: RunConfig, display: Display) -> Forecast:
    """What a run would do and take, without doing it."""
    check_trains(DTYPES.get(config.dtype))
    drafted = draft(config, outline=_outline(config, None))
    model = load(config.model, device=config.device, dtype=config.dtype)
    quantise(model.base.decoder, config.base_precision)
    return _preview(prepare(drafted, model.base, display), display)


def _preview(job: Job, display: Display) -> Forecast:
    return preview_race(job, display) if job.config.search else preview(job, display)


def _outline(config: RunConfig, model: Model | None) -> Callable[[], Decoder]:
    """How to get the decoder a run begins with, without its weights where they are not loaded yet."""
    source, adapter = run_parts(config.model)

    def plain() -> Decoder:
        if adapter is not None or (model is not None and model.technique is not None):
            raise ConfigError(f"the model already carries an adapter; {_EXPORT}, or load the base anew")
        if model is not None and model.merged:
            raise ConfigError(f"the model has an adapter merged in, which no folder holds yet; {_EXPORT}")
        held = config.base_precision if model is None else model.base.decoder.base_precision
        if held not in ("full", config.base_precision):
            asked = config.base_precision
            raise ConfigError(f"the model is held in {held}, not {asked}; give base_precision={held} or load it anew")
        if model is None:
            return base_outline(source)
        for key, own in held_in(model.base.decoder).items():
            if device_of(asked := getattr(config, key)) not in ("auto", own):
                raise ConfigError(f"the model has {key} {own}, not {asked}; leave out {key}, or load the model with it")
        return model.base.decoder

    return plain


def run_parts(model: str) -> tuple[str, Path | None]:
    """A run folder stands for its base and its adapter, or for the whole model it wrote."""
    folder = expanded(model)
    if not (folder / RUN_FILE).is_file():
        return model, None
    if (folder / "model").is_dir():
        return str(folder / "model"), None
    if (folder / "adapter").is_dir():
        return recorded_model(folder), folder / "adapter"
    if (folder / "report.json").is_file() and read_report(folder).chosen.stopped != STOPPED:
        raise ModelError(f"{folder} shipped nothing: no gain within its budget; see graft explain {folder}")
    raise ModelError(f"{folder} is a run that has no result yet; finish it with graft tune {folder}/run.toml --resume")


def recorded_model(folder: Path) -> str:
    """The base that a run folder names. Raises: ConfigError where its run file names none."""
    named = read_toml(folder / RUN_FILE).get("model")
    if not isinstance(named, str) or not named:
        raise ConfigError(f'{folder / RUN_FILE} does not name its base; write it there as model = "..."')
    return named


def _another(base: Base, technique: Technique) -> Base:
    """The base once the technique is merged into it: another model, of which no cache and no adapter folder knows."""
    digest = hashlib.sha256(base.fingerprint.encode())
    for name, tensor in sorted(technique.files(base.decoder).items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return replace(base, name=f"{base.name} with a merged adapter", fingerprint=digest.hexdigest())


def _role(name: str) -> Any:
    allowed = ("system", "user", "assistant", "tool")
    if name not in allowed:
        raise ConfigError(f"role {name!r} is not one of {', '.join(allowed)}")
    return name
