"""Tune pre-trained generative models without breaking what they already know.

    import graftwood as gw

    model = gw.load("smollm2-135m")
    run = gw.tune(model, data="orders.jsonl", out="runs/orders")
    print(run.report.gained, run.report.kept)
    print(run.model.chat("Turn this message into JSON. ..."))

Importing this package imports no torch; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwood.evaluation import evaluate
    from graftwood.run import Model, Run, load, pretrain, tune

__all__ = ["Model", "Run", "__version__", "evaluate", "load", "pretrain", "tune"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from graftwood import evaluation

        return evaluation.evaluate
    if name in ("Model", "Run", "load", "pretrain", "tune"):
        from graftwood import run

        return getattr(run, name)
    raise AttributeError(f"module 'graftwood' has no attribute {name!r}")
