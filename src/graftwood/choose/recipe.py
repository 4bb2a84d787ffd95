"""What trains where a person leaves it to us: one fixed recipe, or several that race, with the reason of each part."""

from __future__ import annotations

from graftwood.choose.budget import NONE
from graftwood.config import RunConfig
from graftwood.technique import TECHNIQUES

AUTO = "auto"
KEEP = "95%"
FIXED, FULL = "lora", "full"
HELD = 3.0  # what multiplies the learning rate where the base's own text holds the model

# Techniques that race, with what multiplies the learning rate of each and whether the base's own text holds it.
RACING = (
    ("lora", 1.0, True),
    ("lora", 3.0, True),
    (FULL, 1.0, False),
    (FULL, 3.0, True),
    ("freeze", 3.0, True),
    ("shira", 3.0, True),
)


def recipe(config: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """A run whose technique is decided, with the reasons of what was; whatever was given stays."""
    if config.technique != AUTO:
        return config.model_copy(update={"keep": config.keep or NONE}), {}
    apart = config.each or config.sequence  # what tasks do to each other is measured on models that go all the way
    keep = config.keep or (NONE if apart else KEEP)
    decided: dict[str, object] = {"technique": FIXED, "keep": keep}
    reasons = {"technique": "LoRA: learns what full tuning does at a fraction of its memory (LoRA Without Regret)"}
    if keep != NONE and not config.anchors:
        decided["anchors"] = {"kl": {}}
        reasons["anchor kl"] = "a budget is given: the base's own text holds the model to it (arXiv 2505.13811)"
        if config.lr is None:
            decided["lr"] = HELD * TECHNIQUES.get(FIXED).learning_rate
            reasons["learning rate"] = (
                "three times LoRA's own: held to the base, a hot rate learns more and drifts no further"
            )
    return config.model_copy(update=decided), reasons


def entrants(config: RunConfig) -> list[RunConfig]:
    """The recipes that race for a budget; what was given of rate, anchors and options holds for all that know it."""
    made = []
    for name, times, held in RACING:
        kind = TECHNIQUES.get(name)
        options = {key: value for key, value in config.options.items() if key in kind.model_fields}
        anchors = config.anchors or ({"kl": {}} if held else {})
        rate = times * (config.lr or kind.learning_rate)
        update = {"technique": name, "lr": rate, "anchors": anchors, "options": options}
        made.append(config.model_copy(update=update))
    return made
