"""What pre-training would take on a cluster, on paper: memory of each GPU, parallel layout, speed, time.

Letters: B sequences of a micro-batch, S tokens of a sequence, H hidden size, L layers, V vocabulary.

Sources: operations and states as Megatron-LM counts them (Narayanan et al. 2021, arXiv 2104.04473); activations from
Korthikanti et al. 2022, arXiv 2205.05198. How much of a GPU's peak is reached is no formula: `EFFICIENCY` is fitted to
published runs, and `bench/planner_rows.py` says on which and how far the others are from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graftwood.errors import ConfigError, nearest
from graftwood.model.config import ModelConfig
from graftwood.model.published import PUBLISHED

CHUNKS = 4  # stages of the pipeline are dealt out in so many turns where there are layers enough


@dataclass(frozen=True)
class Gpu:
    """Memory in bytes, and bfloat16 operations a second without sparsity, as its maker says."""

    memory: float
    peak: float


GPUS: Mapping[str, Gpu] = {
    "A100-40GB": Gpu(40e9, 312e12),
    "A100-80GB": Gpu(80e9, 312e12),
    "H100-80GB": Gpu(80e9, 989e12),
    "H200-141GB": Gpu(141e9, 989e12),
}
EFFICIENCY: Mapping[str, float] = {"A100": 0.49, "H100": 0.471, "H200": 0.471}  # of the peak, outside bubbles
SPREAD = 0.25  # log2: nine in ten published runs lie within it
ALIKE = 0.001  # of a run's time: layouts this near each other are equally fast
USABLE = 0.92  # of a GPU's memory: the rest is context, communication buffers and gaps between blocks


@dataclass(frozen=True)
class Shape:
    """The sizes that cost: `layer` and `active` are parameters of a layer, all of them and those a token passes.

    `attention` is the width of all queries together, `feed_forward` that of all experts a token passes, `edges` the
    parameters of embedding and head.
    """

    hidden: int
    layers: int
    layer: int
    active: int
    attention: int
    heads: int
    feed_forward: int
    vocab: int
    edges: int

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.layer + self.edges

    def operations(self, sequence: int) -> float:
        """Operations of forward and backward for a token, nothing done twice."""
        products = 6.0 * (self.layers * self.active + self.vocab * self.hidden)
        return products + 12.0 * self.layers * self.attention * sequence


@dataclass(frozen=True)
class Layout:
    """How a run is spread: GPUs to a layer, stages of layers, copies of the model; micro-batches of one sequence."""

    tensor: int
    pipeline: int
    data: int
    recompute: bool

    @property
    def gpus(self) -> int:
        """How many it takes."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True)
class Plan:
    """A layout with what it comes to. Units: bytes of one GPU; tokens a second of all; seconds."""

    layout: Layout
    batch_tokens: int
    states: float
    activations: float
    logits: float
    tokens_per_second: float
    share_of_peak: float
    seconds: float

    @property
    def memory(self) -> float:
        """Bytes of the fullest GPU."""
        return self.states + self.activations + self.logits


def shape_of(config: ModelConfig, parameters: int) -> Shape:
    """The costs of a model from its configuration and the number of its parameters."""
    edges = config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
    layer = (parameters - edges) // config.layers
    idle = 0
    if config.experts:
        expert = 3 * config.hidden_size * config.feed_forward_size
        idle = (config.experts - config.experts_per_token) * expert
    return Shape(
        config.hidden_size,
        config.layers,
        layer,
        layer - idle,
        config.heads * config.head_size,
        config.heads,
        config.feed_forward_size * max(1, config.experts_per_token),
        config.vocab_size,
        edges,
    )


def published_shape(name: str) -> tuple[Shape, int]:
    """A published model's shape and the context it was made for. Raises: ConfigError naming near matches."""
    if name not in PUBLISHED:
        raise ConfigError(f"no published model {name!r}.{nearest(name, PUBLISHED)} There are: {', '.join(PUBLISHED)}")
    decoder = PUBLISHED[name].decoder()
    return shape_of(decoder.config, PUBLISHED[name].parameters()), decoder.config.max_positions


def states(shape: Shape, layout: Layout) -> float:
    """Weights and gradients in two and four bytes; the optimiser's twelve are shared out over the copies."""
    own = stage(shape, layout) * shape.layer / layout.tensor + shape.edges / layout.tensor
    return own * (6 + 12 / layout.data)


def activations(shape: Shape, layout: Layout, sequence: int, micro_batches: int) -> float:
    """What the first stage keeps for its backward: 18 bytes a channel and four for each of the feed-forward's, or two.

    Attention's own scores are made again in either case. A stage keeps one micro-batch for every stage after it.
    """
    channel = sequence * shape.hidden / layout.tensor
    alive = min(layout.pipeline, micro_batches) * stage(shape, layout)
    full = 18 + 4 * shape.feed_forward / shape.hidden
    if layout.recompute:
        return channel * (2 * layout.tensor * alive + full)
    turns = chunks(shape, layout)
    return channel * full * alive * (1 + (layout.pipeline - 1) / (layout.pipeline * turns) if turns > 1 else 1)


def stage(shape: Shape, layout: Layout) -> int:
    """Layers of the fullest stage."""
    return -(-shape.layers // layout.pipeline)


def chunks(shape: Shape, layout: Layout) -> int:
    """Turns in which the layers are dealt out to the stages."""
    return max(1, min(CHUNKS, shape.layers // layout.pipeline)) if layout.pipeline > 1 else 1


def speed(shape: Shape, layout: Layout, gpu: str, sequence: int, micro_batches: int) -> float:
    """Tokens a second of all GPUs together: the fullest stage sets the pace, and the pipeline fills and drains."""
    work = shape.operations(sequence) * (4 / 3 if layout.recompute else 1)
    uneven = stage(shape, layout) * layout.pipeline / shape.layers
    bubble = (layout.pipeline - 1) / (chunks(shape, layout) * micro_batches)
    return layout.gpus * GPUS[gpu].peak * EFFICIENCY[gpu.partition("-")[0]] / (work * uneven * (1 + bubble))


def assess(shape: Shape, layout: Layout, gpu: str, sequence: int, batch_tokens: float, tokens: float) -> Plan:
    """What one layout comes to; the batch is rounded to whole micro-batches of one sequence on every copy."""
    micro_batches = max(1, round(batch_tokens / sequence / layout.data))
    rate = speed(shape, layout, gpu, sequence, micro_batches)
    return Plan(
        layout,
        micro_batches * layout.data * sequence,
        states(shape, layout),
        activations(shape, layout, sequence, micro_batches),
        sequence * shape.vocab * 6 / layout.tensor,
        rate,
        rate * shape.operations(sequence) / (layout.gpus * GPUS[gpu].peak),
        tokens / rate,
    )


def layouts(shape: Shape, gpus: int, copies: float) -> Iterator[Layout]:
    """Every way to use all GPUs: up to eight to a layer, up to a stage a layer, at most so many copies."""
    for tensor in (1, 2, 4, 8):
        for pipeline in range(1, shape.layers + 1):
            data, rest = divmod(gpus, tensor * pipeline)
            if rest or shape.heads % tensor or data > copies:
                continue
            yield Layout(tensor, pipeline, data, recompute=False)
            yield Layout(tensor, pipeline, data, recompute=True)


def plan(shape: Shape, gpus: int, gpu: str, sequence: int, batch_tokens: float, tokens: float) -> Plan:
    """The fastest layout that fits, the one in fewest parts where several come to nearly the same.

    Raises: ConfigError for an unknown GPU, for a batch too small to be shared out, or where nothing fits.
    """
    if gpu not in GPUS:
        raise ConfigError(f"no GPU {gpu!r}.{nearest(gpu, GPUS)} There are: {', '.join(GPUS)}")
    every = layouts(shape, gpus, batch_tokens / sequence)
    found = [assess(shape, one, gpu, sequence, batch_tokens, tokens) for one in every]
    if not found:
        raise ConfigError(
            f"{batch_tokens:,.0f} tokens a step cannot be shared out over {gpus} GPUs in sequences of {sequence}; "
            "give more --batch-tokens, or a number of GPUs with more divisors"
        )
    room = GPUS[gpu].memory * USABLE
    fitting = [one for one in found if one.memory <= room]
    if not fitting:
        least = min(found, key=lambda one: one.memory)
        raise ConfigError(
            f"does not fit: at best {least.memory / 1e9:,.0f} GB on each {gpu}, which has {room / 1e9:,.0f} to use; "
            f"the states alone take {18 * shape.parameters / 1e9:,.0f} GB; give more GPUs, or larger ones"
        )
    fastest = min(one.seconds for one in fitting)
    alike = [one for one in fitting if one.seconds <= fastest * (1 + ALIKE)]
    return min(alike, key=lambda one: one.layout.tensor * one.layout.pipeline)
