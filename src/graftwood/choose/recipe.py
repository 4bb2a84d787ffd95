"""What trains where a person leaves it to us: one recipe, with where each part of it comes from."""

from __future__ import annotations

from graftwood.choose.budget import NONE
from graftwood.config import RunConfig

AUTO = "auto"
KEEP = "95%"


def recipe(config: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """A run whose technique is decided, with the reasons of what was; whatever was given stays."""
    if config.technique != AUTO:
        return config.model_copy(update={"keep": config.keep or NONE}), {}
    apart = config.each or config.sequence  # what tasks do to each other is measured on models that go all the way
    keep = config.keep or (NONE if apart else KEEP)
    decided: dict[str, object] = {"technique": "lora", "keep": keep}
    reasons = {"technique": "LoRA: learns what full tuning does at a fraction of its memory (LoRA Without Regret)"}
    if keep != NONE and not config.anchors:
        decided["anchors"] = {"kl": {}}
        reasons["anchor kl"] = "a budget is given: the base's own text holds the model to it (arXiv 2505.13811)"
    return config.model_copy(update=decided), reasons
