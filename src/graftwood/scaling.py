"""One dial to a whole run: sizes of the model, rate, batch and tokens, each with where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from graftwood.config import PretrainConfig
from graftwood.errors import ConfigError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder, count_parameters

GIVEN = "as given"
DEPTH = 4
WIDTH_A_LAYER = 64
TOKENS_A_PARAMETER = 20
MOST_PASSES = 16
APART = 2  # times as many parameters as were asked for, or a part of them: more is another model


@dataclass(frozen=True)
class Setting:
    """A value and its source, as printed."""

    value: float
    source: str


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: what `budget` derives."""

    tokens: Setting
    batch_tokens: Setting
    learning_rate: Setting


def sizes(config: PretrainConfig, vocab_size: int) -> tuple[ModelConfig, dict[str, Setting]]:
    """The Llama-family block's sizes from `depth` or `params`, whatever is given overriding what follows from them.

    Raises: ConfigError for sizes that do not fit each other.
    """
    if config.depth and config.params:
        raise ConfigError("--depth and --params are one dial; give one of them")
    layers, width = _layers_and_width(config, vocab_size)
    head_size = 64 if width.value >= 256 else 32
    heads = _or(config.heads, max(1, round(width.value / head_size)), f"heads of {head_size} channels, as in SmolLM2")
    kv_heads = _or(config.kv_heads, heads.value, "one for each query head: sharing saves memory of long contexts alone")
    inner = max(32, round(width.value * 8 / 3 / 32) * 32)
    feed_forward = _or(config.feed_forward, inner, "8/3 of the width: Shazeer 2020, arXiv 2002.05202")
    usual = 256 if width.value < 512 else 1024
    context = _or(
        config.context, usual, "256 below a width of 512, else 1,024: what a step costs stays in its matrices"
    )
    found = {
        "layers": layers, "width": width, "heads": heads, "key/value heads": kv_heads, "feed-forward": feed_forward,
        "context": context,
    }  # fmt: skip
    if width.value % (2 * heads.value):
        raise ConfigError(
            f"a width of {width.value:g} cannot be shared by {heads.value:g} heads of an even number of channels each; "
            "give another --heads or --width"
        )
    if heads.value % kv_heads.value:
        raise ConfigError(
            f"{heads.value:g} heads cannot share {kv_heads.value:g} key/value heads evenly; give another --kv-heads"
        )
    model = ModelConfig(
        architecture="llama",
        vocab_size=vocab_size,
        hidden_size=int(width.value),
        layers=int(layers.value),
        heads=int(heads.value),
        kv_heads=int(kv_heads.value),
        head_size=int(width.value / heads.value),
        feed_forward_size=int(feed_forward.value),
        max_positions=int(context.value),
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tied_head=config.head == "tied",
        init_std=round(
            width.value**-0.5, 4
        ),  # the scale at which a matrix keeps its input's: He et al. 2015, 1502.01852
    )
    if config.params:
        _check_near(config, config.params, model)
    return model, found


def _layers_and_width(config: PretrainConfig, vocab_size: int) -> tuple[Setting, Setting]:
    if config.params:
        layers, width = _for_parameters(config, config.params, vocab_size)
        why = f"the nearest to {config.params:,} parameters"
        if config.layers is None and config.width is None:
            why = f"about {WIDTH_A_LAYER} channels a layer, as nanochat; {why}"
        return _or(config.layers, layers, why), _or(config.width, width, why)
    depth = config.depth or DEPTH
    source = "the dial" if config.depth else "where no dial is given: minutes to an hour on two cores"
    layers_set = _or(config.layers, depth, source)
    width = WIDTH_A_LAYER * int(layers_set.value)
    return layers_set, _or(config.width, width, f"{WIDTH_A_LAYER} channels a layer, as nanochat")


def _for_parameters(config: PretrainConfig, wanted: int, vocab_size: int) -> tuple[int, int]:
    """Layers and width whose parameters come nearest, at about 64 channels a layer where neither is given.

    A layer has 12 C^2, or 4 C^2 + 3 F C where the feed-forward is given; embedding and an own head V C each.
    """
    square, plain = (12, 0) if config.feed_forward is None else (4, 3 * config.feed_forward)
    tables = vocab_size * (1 if config.head == "tied" else 2)
    free = config.layers is None and config.width is None
    options = []
    for layers in range(1, 257) if config.layers is None else (config.layers,):
        line = tables + layers * plain
        exact = (math.sqrt(line**2 + 4 * square * layers * wanted) - line) / (2 * square * layers)
        step = 64 if exact >= 256 else 32
        width = config.width or max(step, round(exact / step) * step)
        miss = abs(math.log((square * layers * width**2 + line * width) / wanted))
        apart = round(abs(math.log(width / layers / WIDTH_A_LAYER)), 1) if free else 0.0
        options.append((apart + 4 * miss, layers, width))
    _, layers, width = min(options)
    return layers, width


def _check_near(config: PretrainConfig, wanted: int, model: ModelConfig) -> None:
    """Raises: ConfigError where a model has far from as many parameters as were asked for."""
    with torch.device("meta"):
        found = count_parameters(Decoder(ARCHITECTURES.get(model.architecture), model).parameters())
    if not wanted / APART <= found <= wanted * APART:
        given = [name for name in ("layers", "width") if getattr(config, name)]
        such = "".join(f", {'these' if name == 'layers' else 'this'} --{name}" for name in given)
        raise ConfigError(
            f"--params {wanted:,}: the nearest model with a vocabulary of {model.vocab_size:,}{such} has {found:,} "
            "parameters; give about as many, another vocabulary, or other --layers and --width"
        )


def budget(config: PretrainConfig, parameters: int, corpus_tokens: int, context: int) -> Schedule:
    """Tokens, batch and rate of a run.

    Source of batch and rate: Bi et al. 2024 (DeepSeek LLM), arXiv 2401.02954, eq. 1, from the compute of the run.
    """
    if config.model is None:
        enough, most = TOKENS_A_PARAMETER * parameters, MOST_PASSES * corpus_tokens
        rule = f"{TOKENS_A_PARAMETER} a parameter: Hoffmann et al. 2022, arXiv 2203.15556"
        if most < enough:
            rule = (
                f"{MOST_PASSES} passes, after which repeated text teaches little: Muennighoff et al. 2023, 2305.16264"
            )
        tokens = _or(config.tokens, min(enough, most), rule)
    else:
        tokens = _or(config.tokens, corpus_tokens, "one pass over the corpus")
    compute = 6 * parameters * tokens.value
    source = "from the run's compute: DeepSeek LLM, arXiv 2401.02954, eq. 1"
    batch = _or(config.batch_tokens, round(0.2920 * compute**0.3271), source)
    whole = max(1, round(batch.value / context)) * context
    source = f"{config.batch_tokens:,} as given" if config.batch_tokens else batch.source
    batch = batch if whole == batch.value else Setting(whole, f"{source}, in whole windows of {context:,}")
    rate = 0.3118 * compute**-0.1250
    if config.model is not None:
        rate, source = rate / 100, "a hundredth of a new model's: a tenth learned no more and forgot half (docs/log.md)"
    return Schedule(tokens, batch, _or(config.lr, float(f"{rate:.2g}"), source))


def optimiser(config: PretrainConfig) -> tuple[Literal["muon", "adamw"], str]:
    """Which one makes the steps, and why."""
    if config.optimiser is not None:
        return config.optimiser, GIVEN
    if config.model is None:
        return "muon", "fewer steps to the same loss: Jordan et al. 2024, kellerjordan.github.io/posts/muon"
    return "adamw", "what AdamW trained goes on best with it (Liu et al. 2025, arXiv 2502.16982, section 3.5)"


def _or(given: float | None, derived: float, source: str) -> Setting:
    return Setting(derived, source) if given is None else Setting(given, GIVEN)
