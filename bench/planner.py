"""The planner's speed beside published runs: half of them set its two constants, the other half say how far off it is.

python -m bench.planner
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from bench.common import BenchError, Figure, finish, options, run, say

from graftwood.planner import EFFICIENCY, Layout, Shape, speed


@dataclass(frozen=True)
class Row:
    """A published run of a GPT: its sizes, how it was spread, and the tokens a second it reached on each GPU."""

    number: int
    gpu: str
    hidden: int
    layers: int
    vocab: int
    sequence: int
    layout: Layout
    batch: int
    measured: float

    @property
    def shape(self) -> Shape:
        """A layer of GPT is 12 matrices of its width squared."""
        layer, edges = 12 * self.hidden**2, self.vocab * self.hidden
        return Shape(
            self.hidden, self.layers, layer, layer, self.hidden, self.hidden // 128, 4 * self.hidden, self.vocab, edges
        )

    def predicted(self) -> float:
        """Tokens a second of one GPU."""
        micro_batches = self.batch // self.layout.data
        return speed(self.shape, self.layout, self.gpu, self.sequence, micro_batches) / self.layout.gpus

    def off(self) -> float:
        """log2 of measured over predicted."""
        return math.log2(self.measured / self.predicted())


def _row(number: int, gpu: str, sizes: tuple[int, int, int, int], layout: Layout, batch: int, operations: float) -> Row:
    """A run of which the operations a second of one GPU are known, those done twice included."""
    hidden, layers, vocab, sequence = sizes
    row = Row(number, gpu, hidden, layers, vocab, sequence, layout, batch, 1.0)
    work = row.shape.operations(sequence) * (4 / 3 if layout.recompute else 1)
    return Row(number, gpu, hidden, layers, vocab, sequence, layout, batch, operations / work)


# Megatron-LM on A100-80GB, every layer's activations made again: width, layers, GPUs to a model, GPUs, batch, TFLOP/s.
_A = (
    (2304, 24, 1, 32, 512, 137),
    (3072, 30, 2, 64, 512, 138),
    (4096, 36, 4, 128, 512, 142),
    (6144, 40, 8, 256, 1024, 135),
    (8192, 48, 16, 512, 1536, 138),
    (10240, 60, 32, 1024, 1792, 140),
    (12288, 80, 64, 1536, 2304, 148),
    (16384, 96, 128, 1920, 2160, 155),
    (20480, 105, 280, 2520, 2520, 163),
    (25600, 128, 512, 3072, 3072, 163),
    (12288, 96, 128, 1024, 1536, 138),
)
# Korthikanti et al. 2022, table 5, A100-80GB, attention's scores made again: width, layers, stages, batch, seconds.
_B = ((6144, 48, 1, 4, 1.10), (12288, 96, 8, 64, 13.75), (20480, 105, 35, 280, 37.83), (25600, 128, 64, 512, 71.49))
# Megatron-core 0.8 on H100: width, layers, tensor, stages, batch, TFLOP/s; 48 copies of the model.
_C = (
    (2048, 24, 1, 1, 192, 408.8),
    (4096, 30, 2, 1, 192, 465.9),
    (6144, 32, 4, 1, 192, 489.1),
    (7168, 48, 8, 1, 192, 459.6),
    (8192, 84, 8, 2, 384, 419.7),
    (10240, 92, 8, 4, 768, 420.5),
    (12288, 96, 8, 6, 1152, 432.8),
    (16384, 96, 8, 8, 1536, 474.4),
    (18432, 112, 8, 16, 3072, 459.9),
)


def rows() -> list[Row]:
    """All runs, numbered in the order above."""
    found = []
    for hidden, layers, model, gpus, batch, tera in _A:
        tensor = min(8, model)
        layout = Layout(tensor, model // tensor, gpus // model, recompute=True)
        sizes = (hidden, layers, 51200, 2048)
        found.append(_row(len(found) + 1, "A100-80GB", sizes, layout, batch, tera * 1e12))
    for hidden, layers, stages, batch, seconds in _B:
        layout = Layout(8, stages, 1, recompute=False)
        measured = batch * 2048 / seconds / layout.gpus
        found.append(Row(len(found) + 1, "A100-80GB", hidden, layers, 51200, 2048, layout, batch, measured))
    for hidden, layers, tensor, stages, batch, tera in _C:
        layout = Layout(tensor, stages, 48, recompute=False)
        sizes = (hidden, layers, 131072, 4096)
        found.append(_row(len(found) + 1, "H100-80GB", sizes, layout, batch, tera * 1e12))
    return found


def calibrates(row: Row) -> bool:
    """Odd rows set the constants, even ones test them."""
    return row.number % 2 == 1


def fitted() -> dict[str, float]:
    """What the calibrating rows make of each GPU's efficiency."""
    found = {}
    for kind in ("A100", "H100"):
        offs = [row.off() for row in rows() if row.gpu.startswith(kind) and calibrates(row)]
        found[kind] = EFFICIENCY[kind] * 2 ** (sum(offs) / len(offs))
    return found


def main() -> int:
    """Fit, compare, and write `results/planner.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1).parse_args()
    constants = fitted()
    stale = {kind: value for kind, value in constants.items() if abs(value / EFFICIENCY[kind] - 1) > 0.005}
    if stale:
        raise BenchError(f"the planner's constants are not what the rows make of them: {stale}")
    tested = [row for row in rows() if not calibrates(row)]
    offs = {row.number: row.off() for row in rows()}
    say(", ".join(f"row {number}: {off:+.2f}" for number, off in offs.items()))
    figure = Figure(
        "planner_throughput_log2_median", median(abs(row.off()) for row in tested), "log2 of measured over planned",
        "the planner's tokens a second against published runs",
        f"median of {len(tested)} runs that set no constant", "0.15 is the most allowed",
    )  # fmt: skip
    return finish(
        "planner", given, [figure], {}, needs_quiet=False, constants=constants, log2_measured_over_planned=offs,
        calibrating_rows=[row.number for row in rows() if calibrates(row)],
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
