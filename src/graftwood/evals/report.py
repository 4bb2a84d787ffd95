"""The report of a run on disk: the data, the page and, where it can be drawn, the picture."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from graftwood.errors import ConfigError
from graftwood.evals.card import Card
from graftwood.evals.html import card_html
from graftwood.evals.picture import png
from graftwood.evals.svg import card_svg
from graftwood.files import atomic_write, storage, write_json

DATA, PAGE, PICTURE = "report.json", "report.html", "report.png"


def write_report(card: Card, folder: Path) -> list[Path]:
    """Write the card into `folder` and return the files, the picture only where the extra `report` is installed.

    Raises: StorageError when the folder cannot be written.
    """
    data, page, picture = (folder / name for name in (DATA, PAGE, PICTURE))
    with storage(f"write the report into {folder}"):
        write_json(data, card.model_dump(mode="json"))
        atomic_write(page, card_html(card))
        drawn = png(card_svg(card), picture, width=2400)
    return [data, page, *([picture] if drawn else [])]


def read_report(folder: Path) -> Card:
    """The card that `write_report` left in `folder`.

    Raises: ConfigError when there is none, or when the file is not a report card of this version.
    """
    path = folder / DATA
    if not path.is_file():
        raise ConfigError(f"no report in {folder}: {DATA} is missing. Give the folder of a finished run.")
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"{path} is not a report card of this version: {where}: {first['msg']}. "
            "Delete it and write the report again from its run."
        ) from error
