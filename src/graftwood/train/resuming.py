"""What tells a checkpoint of this run from one of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwood.checkpoint import Saved
from graftwood.errors import ConfigError
from graftwood.model.decoder import count_parameters


def check_same_run(folder: Path, saved: Saved, here: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Compare what a step folder holds with the plan, the rows and the parameters of the run that is to go on.

    `here` is what this run would have written beside its progress. Raises: ConfigError naming all that differs.
    """
    here, there = json.loads(json.dumps(here)), saved.state
    odd = [
        f"{name} {there['plan'].get(name)} there, {value} here"
        for name, value in here["plan"].items()
        if there["plan"].get(name) != value
    ]
    if {name: tensor.shape for name, tensor in saved.trained.items()} != {n: p.shape for n, p in trained.items()}:
        counts = (count_parameters(tensors.values()) for tensors in (saved.trained, trained))
        odd.append("other parameters train ({:,} there, {:,} here)".format(*counts))
    if there["drawn"] != here["drawn"]:
        odd.append(f"rows drawn of each task {there['drawn']} there, {here['drawn']} here")
    # A step's rows are numbers, so rows that came or went would be others under the same numbers.
    known = there.get("rows", {})
    odd += [f"other {kind} rows" for kind, print_ in here["rows"].items() if known.get(kind, print_) != print_]
    if odd:
        raise ConfigError(f"{folder} is of another run: {'; '.join(odd)}; give what was given there, or another folder")
