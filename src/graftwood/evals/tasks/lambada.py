"""LAMBADA: the last word of a passage, which only the whole passage tells."""

from functools import partial

from graftwood.evals.task import Item, Task, numbered


def _items(more: bool = False) -> tuple[Item, ...]:
    return tuple(
        Item(id=name, prompt=row["context"], answer=f" {row['continuation']}")
        for name, row in numbered("lambada", more)
    )


TASK = Task(
    name="lambada",
    title="story's next word",
    kind="word",
    version=1,
    chance=0.0,
    source="LAMBADA, test set as prepared by OpenAI (Paperno and others, 2016, arXiv:1606.06031)",
    licence="CC BY 4.0",
    read=_items,
    more=partial(_items, more=True),
)
