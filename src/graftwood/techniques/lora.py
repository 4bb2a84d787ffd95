"""LoRA: each targeted linear gains `scale * B A`, and only A and B train.

Source: Hu et al. 2021, arXiv 2106.09685, eq. 3; the scale `alpha / sqrt(r)` is rsLoRA, Kalajdzievski 2023,
arXiv 2312.03732.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from graftwood.errors import ConfigError, nearest
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.technique import Technique, copy_tensors

ALL_LINEAR = "all-linear"
_PREFIX = "base_model.model."
# Fields of PEFT's LoRA configuration that are read, or that only matter before and during training. Any other field,
# known or not, must be off.
_PEFT_READ = frozenset(
    (
        "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "init_lora_weights", "peft_type",
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying", "loftq_config", "eva_config",
        "corda_config", "lora_ga_config", "velora_config",
    )
)  # fmt: skip
_PEFT_OFF: tuple[Any, ...] = (None, False, "none", {}, [])


class LoRADelta(nn.Module):
    """The update of one linear. Shapes: lora_A [R, in], lora_B [out, R]."""

    def __init__(self, linear: Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        bound = math.sqrt(1 / inputs)  # kaiming_uniform with a = sqrt(5), as the paper's code and PEFT initialise A
        start = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=linear.weight.device))
        self.scale = scale
        self.dropout = dropout

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """A, B and the scale, while no dropout stands between the input and A."""
        return None if self.dropout and self.training else (self.lora_A, self.lora_B, self.scale)

    def merged(self, linear: Linear) -> Tensor:
        """The weight that computes the same without a delta, in float32."""
        return torch.addmm(linear.weight.float(), self.lora_B.float(), self.lora_A.float(), alpha=self.scale)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return linear.plain(x) + self.scale * F.linear(low, self.lora_B.to(x.dtype))


class LoRA(Technique):
    """Low-rank adaptation of the linears inside the blocks."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = (
        "ten times the full rate (LoRA Without Regret, Thinking Machines 2025; TRL's PEFT guide says the same)"
    )

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_LINEAR,)

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A comma-separated string is a list of names, not of letters."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def scale(self) -> float:
        """What `B A` is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def apply(self, decoder: Decoder, seed: int) -> None:
        chosen = self.matches(decoder)
        small = sorted(
            {f"{path} {list(m.weight.shape)}" for path, m in chosen.items() if self.rank > min(m.weight.shape)}
        )
        if small:
            raise ConfigError(
                f"rank {self.rank} is above the size of {small[0]} and {len(small) - 1} more; lower --rank"
            )
        decoder.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for linear in chosen.values():
            delta = LoRADelta(linear, self.rank, self.scale, self.dropout, generator)
            linear.delta = delta.train(linear.training)

    def matches(self, decoder: Decoder) -> dict[str, Linear]:
        """The linears the targets name: by full path, by its last parts, or all of the blocks.

        Raises: ConfigError for every target that names none.
        """
        linears = decoder.linears()
        if self.targets == (ALL_LINEAR,):
            return linears
        chosen: dict[str, Linear] = {}
        missing = []
        for target in self.targets:
            found = {path: m for path, m in linears.items() if path == target or path.endswith("." + target)}
            if not found:
                missing.append(target)
            chosen |= found
        if missing:
            leaves = sorted({path.rpartition(".")[2] for path in linears})
            hints = "".join(nearest(target, leaves) for target in missing)
            raise ConfigError(
                f"no linear of {decoder.architecture.name} is called {', '.join(map(repr, missing))}.{hints} "
                f"Linears: {', '.join(leaves)}; or {ALL_LINEAR}."
            )
        return {path: linear for path, linear in linears.items() if path in chosen}

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return {
            f"{_PREFIX}{path}.{half}.weight": getattr(linear.delta, half).detach()
            for path, linear in decoder.linears().items()
            if isinstance(linear.delta, LoRADelta)
            for half in ("lora_A", "lora_B")
        }

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(self.files(decoder), tensors, "the adapter")

    @torch.no_grad()
    def merge(self, decoder: Decoder) -> None:
        for linear in decoder.linears().values():
            if isinstance(linear.delta, LoRADelta):
                merged = linear.delta.merged(linear).to(linear.weight.dtype)
                linear.weight = nn.Parameter(merged, requires_grad=False)
                linear.delta = None

    def describe(self, base_name: str) -> dict[str, Any]:
        every = self.targets == (ALL_LINEAR,)
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": ALL_LINEAR if every else list(self.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> LoRA:
        """The technique a published `adapter_config.json` describes.

        Raises: ConfigError for a field with a value that changes the result and is not implemented here.
        """
        targets = config.get("target_modules") or ALL_LINEAR
        odd = [f"{key}={value!r}" for key, value in config.items() if key not in _PEFT_READ and value not in _PEFT_OFF]
        # Other ways to begin also change the base's weights, so the factors alone do not say what was trained.
        if config.get("init_lora_weights", True) not in (True, False, None, "gaussian", "eva", "orthogonal"):
            odd.append(f"init_lora_weights={config['init_lora_weights']!r}")
        if isinstance(targets, str) and targets != ALL_LINEAR:
            odd.append(f"target_modules={targets!r} (a pattern and no list of names)")
        if odd:
            raise ConfigError(f"this LoRA adapter uses {', '.join(odd)}, which this version does not read")
        return cls.parse(
            {
                "rank": config.get("r", 8),
                "alpha": config.get("lora_alpha", 8),
                "dropout": config.get("lora_dropout", 0.0),
                "rslora": config.get("use_rslora", False),
                "targets": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
            }
        )
