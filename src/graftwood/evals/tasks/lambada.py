"""LAMBADA: the last word of a passage, which only the whole passage tells."""

from graftwood.evals.task import Item, Task, pocket


def _items() -> tuple[Item, ...]:
    return tuple(
        Item(id=f"lambada-{number:03d}", prompt=row["context"], answer=f" {row['continuation']}")
        for number, row in enumerate(pocket("lambada"), start=1)
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
)
