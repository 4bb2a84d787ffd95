"""Short requests to an assistant, each judged by program: does the model still do what it is told?

The requests are Graftwood's own, of kinds of which a small chat model follows most: there must be something to lose.
They were chosen with the answers of SmolLM2-135M-Instruct in view, which flatters that base slightly.
"""

from graftwood.evals import more_requests
from graftwood.evals.checks import VERSION
from graftwood.evals.task import Item, Task, pocket


def _items() -> tuple[Item, ...]:
    return tuple(
        Item(id=row["id"], prompt=row["prompt"], checks=tuple(row["checks"]), cluster=row["family"])
        for row in pocket("requests")
    )


TASK = Task(
    name="requests",
    title="requests followed",
    kind="program",
    version=VERSION,
    chance=0.0,
    source="Graftwood",
    licence="Apache-2.0",
    read=_items,
    more=more_requests.items,
    max_tokens=48,
)
