"""LoRA: each targeted linear gains `scale * B A`, and only A and B train.

Source: Hu et al. 2021, arXiv 2106.09685, eq. 3. The scale `alpha / sqrt(r)` is rsLoRA, Kalajdzievski 2023,
arXiv 2312.03732; B learning faster than A is LoRA+, Hayou et al. 2024, arXiv 2402.12354; the start at the principal
components is PiSSA, Meng et al. 2024, arXiv 2404.02948.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.model.matrices import Matrix, matrices
from graftwood.techniques._experts import Part, joined, parameter_names, parted, places
from graftwood.techniques._linear import LinearDelta, LinearTechnique, leaves, listed, names, regular
from graftwood.techniques._peft import PREFIX, options_from


class LoRADelta(LinearDelta):
    """The update of one linear. Shapes: lora_A [R, in], lora_B [out, R].

    `taken` is what the start takes off the base's weight, so that A and B can begin with it: `(A, B)` of the start.
    """

    by_row: tuple[str, ...] = ("lora_B",)
    taken_A: Tensor | None
    taken_B: Tensor | None

    def __init__(self, linear: Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        bound = math.sqrt(1 / inputs)  # kaiming_uniform with a = sqrt(5), as the paper's code and PEFT initialise A
        start = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=linear.weight.device))
        self.register_buffer("taken_A", None, persistent=False)
        self.register_buffer("taken_B", None, persistent=False)
        self.scale = scale
        self.dropout = dropout

    @torch.no_grad()
    def start_with(self, a: Tensor, b: Tensor) -> None:
        """Begin with this update, and take it off the base's part."""
        self.lora_A.copy_(a)
        self.lora_B.copy_(b)
        self.taken_A, self.taken_B = a.clone(), b.clone()

    def parts(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole update, what was taken off included."""
        if self.taken_A is None or self.taken_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.taken_A]), torch.cat([self.lora_B, -self.taken_B], dim=1)

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """A, B and the scale, while no dropout stands between the input and A."""
        return None if self.dropout and self.training else (*self.parts(), self.scale)

    def merged(self, linear: Linear) -> Tensor:
        """The weight that computes the same without a delta, in float32."""
        a, b = self.parts()
        return torch.addmm(linear.weight.float(), b.float(), a.float(), alpha=self.scale)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        base = linear.plain(x)
        if self.taken_A is not None and self.taken_B is not None:
            base = base - self.scale * F.linear(F.linear(x, self.taken_A.to(x.dtype)), self.taken_B.to(x.dtype))
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return base + self.scale * F.linear(low, self.lora_B.to(x.dtype))


def _pattern(value: Any) -> Any:
    """`q_proj=4,down_proj=32` as a dictionary."""
    if not isinstance(value, str):
        return value
    return dict(part.rpartition("=")[::2] for part in value.split(",") if part.strip())


def _regular(patterns: Mapping[str, float]) -> Mapping[str, float]:
    regular(patterns)
    return patterns


Ranks = Annotated[
    dict[str, Annotated[int, Field(ge=1)]],
    Field(description="ranks of single linears: `q_proj=4,down_proj=32`"),
    BeforeValidator(_pattern),
    AfterValidator(_regular),
]
Alphas = Annotated[
    dict[str, Annotated[float, Field(gt=0)]],
    Field(description="alphas of single linears, likewise"),
    BeforeValidator(_pattern),
    AfterValidator(_regular),
]


def by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    """The value of the first pattern that is the end of the path. Source: PEFT's `get_pattern_key`."""
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def by_name(values: Mapping[str, float], default: float) -> dict[str, float]:
    """A pattern for the values that are not the default: last parts of paths where they say it."""
    found: dict[str, float] = {}
    for path, value in values.items():
        leaf = path.rpartition(".")[2]
        alike = all(other == value for one, other in values.items() if names(leaf, one))
        found |= {leaf if alike else path: value} if value != default else {}
    return found


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B of a matrix's largest singular components. Shapes: weight [out, in], A [R, in], B [out, R]."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root.unsqueeze(1) * right[:rank], left[:, :rank] * root


@torch.no_grad()
def stacked(matrix: Matrix) -> tuple[Tensor, Tensor, float]:
    """Updates of single linears as one of their matrix: each A above the other, each B in its own rows and columns."""
    deltas: list[Any] = [linear.delta for linear in matrix.linears.values()]
    own = [delta for delta in deltas if delta is not None]
    a, blocks, start = torch.cat([delta.lora_A for delta in own]), [], 0
    for linear, delta in zip(matrix.linears.values(), deltas, strict=True):
        block = a.new_zeros(len(linear.weight), len(a))
        if delta is not None:
            end = start + len(delta.lora_A)
            block[:, start:end] = delta.lora_B * (delta.scale / own[0].scale)
            start = end
        blocks.append(block)
    return a, matrix.join(blocks), own[0].scale


@torch.no_grad()
def unstack(matrix: Matrix, a: Tensor, b: Tensor) -> None:
    """The inverse of `stacked`, into the deltas."""
    deltas: list[Any] = [linear.delta for linear in matrix.linears.values()]
    scale, start = next(delta.scale for delta in deltas if delta is not None), 0
    for delta, rows in zip(deltas, matrix.split(b), strict=True):
        if delta is not None:
            end = start + len(delta.lora_A)
            delta.lora_A.copy_(a[start:end])
            delta.lora_B.copy_(rows[:, start:end] * (scale / delta.scale))
            start = end


class LoRA(LinearTechnique):
    """Low-rank adaptation of the linears inside the blocks."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = (
        "ten times the full rate (LoRA Without Regret, Thinking Machines 2025; TRL's PEFT guide says the same)"
    )
    formula: ClassVar[str] = "y = W x + (alpha / rank) B A x"
    example: ClassVar[str] = "--rank 8 --targets q_proj,v_proj"
    trains: ClassVar[str] = "two low-rank matrices beside each targeted linear"
    cost: ClassVar[str] = "two thin products more for each linear; no gradient of a whole matrix"
    peft_type: ClassVar[str | None] = "LORA"
    kind: ClassVar[type[LoRADelta]] = LoRADelta
    on_parameters: ClassVar[bool] = True  # whether PEFT has it on what is no module, by `target_parameters`
    tensors: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    peft: ClassVar[Mapping[str, str]] = {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "use_rslora": "rslora",
        "target_modules": "targets",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    }
    # How PEFT's other starts begin is no matter once A and B are there; those that also change the base's weights are
    # not among them, but for PiSSA, whose change follows from the base.
    peft_starts: ClassVar[Mapping[Any, str]] = {
        **dict.fromkeys((True, False, None, "gaussian", "eva", "orthogonal"), "zero"),
        "pissa": "pissa",
    }
    peft_past: ClassVar[tuple[str, ...]] = (
        "init_lora_weights", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying",
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    )  # fmt: skip

    rank: Annotated[int, Field(ge=1, description="rows of A, columns of B")] = 16
    alpha: Annotated[float, Field(gt=0, description="the update is scaled by `alpha / rank`")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the input of A while training")] = 0.0
    rslora: Annotated[bool, Field(description="scale by `alpha / sqrt(rank)` instead")] = False
    rank_pattern: Ranks = Field(default_factory=dict)
    alpha_pattern: Alphas = Field(default_factory=dict)
    start: Annotated[
        Literal["zero", "pissa"],
        Field(description="`pissa` begins with the weight's largest singular components, taken off the base's part"),
    ] = "zero"
    b_rate: Annotated[float, Field(gt=0, description="B's learning rate is so many times A's (LoRA+ advises 16)")] = 1.0

    @property
    def needs_full(self) -> str | None:
        # A folder does not say on which weights it was made, and opened on the full ones it takes off theirs.
        return "start=pissa" if self.start == "pissa" else None

    @property
    def scale(self) -> float:
        """What `B A` is multiplied with where no pattern says otherwise."""
        return self.scale_of("")[1]

    def scale_of(self, path: str) -> tuple[int, float]:
        """Rank of a linear's update and what `B A` is multiplied with."""
        rank = int(by_pattern(self.rank_pattern, path, self.rank))
        alpha = by_pattern(self.alpha_pattern, path, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def dial(self, decoder: Decoder, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
        """Where B began at zero A stays where it ended: `B A` then grows with alpha itself and not with its square."""
        if self.start == "zero":
            moved = torch.stack([tensor.any() for name, tensor in start.items() if name.endswith("lora_B")]).any()
            way = {name: torch.where(moved, start[name], end[name]) for name in start if name.endswith("lora_A")}
            start = {**start, **way}
        super().dial(decoder, start, end, alpha)

    def problems(self, decoder: Decoder) -> list[str]:
        found = super().problems(decoder)
        if self.start != "pissa":
            return found
        if not all(whole for _, whole in self.stored(decoder)):
            found.append(
                "start=pissa needs whole matrices of the files, which a target is part of; name those, or all-linear"
            )
        return found + self._too_large(decoder)  # a matrix has no more components than its size

    def mistakes(self, decoder: Decoder) -> list[str]:
        found = super().mistakes(decoder) + ([] if self.start == "pissa" else self._too_large(decoder))
        chosen = self.matches(decoder)
        unused = [
            key
            for key in (*self.rank_pattern, *self.alpha_pattern)
            if not any(re.match(rf"(.*\.)?({key})$", matrix.key) for matrix in chosen.values())
        ]
        if unused:
            found.append(f"rank_pattern and alpha_pattern name no targeted linear with {', '.join(map(repr, unused))}")
        return found

    def _too_large(self, decoder: Decoder) -> list[str]:
        """One problem with all ranks above the size of their matrix, or none."""
        sizes = {path: (self.scale_of(m.key)[0], m.shape) for path, m in self.matches(decoder).items()}
        large = sorted(
            f"rank {r} is above the size of {path} {list(s)}" for path, (r, s) in sizes.items() if r > min(s)
        )
        more = f" and {len(large) - 1} more" if len(large) > 1 else ""
        return [f"{large[0]}{more}; lower --rank"] if large else []

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        made: dict[str, LinearDelta] = {}
        for matrix in self.matches(decoder).values():
            rank, scale = self.scale_of(matrix.key)
            deltas = [self.kind(linear, rank, scale, self.dropout, generator) for linear in matrix.linears.values()]
            if self.start == "pissa":
                a, b = principal(matrix.weight(), rank, scale)
                for delta, rows in zip(deltas, matrix.split(b), strict=True):
                    delta.start_with(a, rows)
            made |= zip(matrix.linears, deltas, strict=True)
        return made

    def update(self, matrix: Matrix, whole: bool) -> tuple[Tensor, Tensor, float]:
        """A, B and the scale of all that is added to a matrix of the files."""
        deltas = [linear.delta for linear in matrix.linears.values()]
        if not whole:
            return stacked(matrix)
        parts = [delta.parts() for delta in deltas if isinstance(delta, LoRADelta)]
        return parts[0][0], matrix.join([b for _, b in parts]), self.scale_of(matrix.key)[1]

    def gathered(self, matrix: Matrix, whole: bool) -> dict[str, Tensor]:
        if whole:
            return super().gathered(matrix, whole)
        a, b, _ = stacked(matrix)
        return {"lora_A": a, "lora_B": b}

    def spread(self, matrix: Matrix, whole: bool, values: Mapping[str, Tensor]) -> None:
        if whole:
            super().spread(matrix, whole, values)
        else:
            unstack(matrix, values["lora_A"], values["lora_B"])

    def parts(self, decoder: Decoder) -> list[tuple[str, list[Matrix], list[Part | None]]]:
        """What the file holds: the beginning of names, the matrices there, and the update of each that has one."""
        whole = {matrix.path: whole for matrix, whole in self.stored(decoder)}

        def part(matrix: Matrix) -> Part | None:
            if matrix.path not in whole:
                return None
            if not whole[matrix.path]:
                return stacked(matrix)
            values = self.gathered(matrix, True)
            return values["lora_A"].detach(), values["lora_B"].detach(), self.scale_of(matrix.key)[1]

        groups = places(decoder, whole).items()
        return [(place, group, [part(matrix) for matrix in group]) for place, group in groups]

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        if not self.on_parameters:
            return super().files(decoder)
        return {
            f"{PREFIX}{place}.{ending}": tensor
            for place, _, parts in self.parts(decoder)
            for ending, tensor in zip(self.tensors.values(), joined(parts)[:2], strict=True)
        }

    @torch.no_grad()
    def scatter(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        if not self.on_parameters:
            return super().scatter(decoder, tensors)
        chosen = self.matches(decoder)
        for place, group, parts in self.parts(decoder):
            a, b = (tensors[f"{PREFIX}{place}.{ending}"] for ending in self.tensors.values())
            touched = (matrix for matrix, part in zip(group, parts, strict=True) if part is not None)
            for matrix, (own_a, own_b) in zip(touched, parted(a, b, parts), strict=True):
                self.spread(matrix, matrix.path in chosen, {"lora_A": own_a, "lora_B": own_b})
        return None

    def rates(self, decoder: Decoder) -> dict[str, float]:
        return {name: self.b_rate for name in decoder.trained() if name.endswith("lora_B") and self.b_rate != 1}

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        start = "pissa" if self.start == "pissa" else True
        fields = super().describe(decoder) | self.patterns(decoder) | {"bias": "none", "init_lora_weights": start}
        whole = matrices(decoder).values()
        bare = {matrix.key for matrix, _ in self.stored(decoder) if matrix.parameter and self.on_parameters}
        if not bare:
            return fields
        among = {matrix.key for matrix in whole if matrix.parameter}
        names = parameter_names(bare, among, decoder.architecture.names.blocks)
        # PEFT opens no folder with dropout there, which is over once it is trained.
        return fields | {"target_parameters": names, "lora_dropout": 0.0}

    def target_modules(self, decoder: Decoder) -> str | list[str]:
        stored = [matrix for matrix, _ in self.stored(decoder)]
        if not self.on_parameters or all(matrix.parameter is None for matrix in stored):
            return super().target_modules(decoder)
        return leaves([matrix.path for matrix in stored if matrix.parameter is None], matrices(decoder))

    def patterns(self, decoder: Decoder) -> dict[str, Any]:
        """Ranks and alphas of the files' matrices: those of single linears add up to a matrix's."""
        stored = self.stored(decoder)
        if all(whole for _, whole in stored):
            return {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        ranks, alphas = {}, {}
        for _, group, parts in self.parts(decoder):
            a, _, scale = joined(parts)
            key, rank = group[0].key, len(a) // len(group)
            ranks[key], alphas[key] = rank, scale * (math.sqrt(rank) if self.rslora else rank)
        return {"rank_pattern": by_name(ranks, self.rank), "alpha_pattern": by_name(alphas, self.alpha)}

    @classmethod
    def opens(cls, config: Mapping[str, Any]) -> bool:
        return super().opens(config) and not config.get("use_dora")

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        given = config.get("init_lora_weights", True)
        bare = tuple(config.get("target_parameters") or ()) if cls.on_parameters else ()
        odd = [] if config.get("target_modules") or bare else ["target_modules"]
        known = isinstance(given, bool | str | None) and given in cls.peft_starts
        odd += [] if known else ["init_lora_weights"]
        past = (*cls.peft_past, "use_dora", "fan_in_fan_out", *(["target_parameters"] if bare else []))
        options = options_from(cls.title, config, cls.peft, past, odd)
        if bare:
            options["targets"] = (*listed(options.get("targets") or ()), *bare)
        return cls.parse({"rank": 8, "alpha": 8, "start": cls.peft_starts[given]} | options)
