"""Make the bundled pocket sets from the full evaluation sets: `python scripts/pocket.py SKILLS_DIR [OUT_DIR]`.

SKILLS_DIR holds the full sets as JSON lines, named as in `SOURCES`. Rows are taken in the order of the SHA-256 of their
canonical JSON, so that the choice depends on nothing but the rows: a hundred that are usually asked, and, after a
hundred that are left to benchmarks, three hundred more, each of whose questions comes for the first time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

SOURCES = {
    "arc_easy": "arc_easy.jsonl",
    "piqa": "piqa.jsonl",
    "lambada": "lambada_openai.jsonl",
    "siqa": "siqa.jsonl",
    "openbook_qa": "openbook_qa.jsonl",
}
USUAL, LEFT, MORE = 100, 100, 300
OUT = Path(__file__).parent.parent / "src" / "graftwood" / "evals" / "pocket"


def pocket_text(source: Path) -> str:
    """The chosen rows of `source` in canonical JSON, one a line; a row that occurs twice counts once."""
    with source.open(encoding="utf-8") as lines:
        rows = {json.dumps(json.loads(line), sort_keys=True) for line in lines}
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row.encode()).hexdigest())
    known = {_question(row) for row in ordered[: USUAL + LEFT]}
    chosen = ordered[:USUAL]
    for row in ordered[USUAL + LEFT :]:
        if len(chosen) < USUAL + MORE and _question(row) not in known:
            known.add(_question(row))
            chosen.append(row)
    return "".join(f"{row}\n" for row in chosen)


def _question(row: str) -> str:
    read = json.loads(row)
    return str(read.get("query", read.get("context"))).strip()


def main(skills: Path, out: Path = OUT) -> None:
    """Write every pocket set of the full sets in `skills` to `out`."""
    for name, source in SOURCES.items():
        (out / f"{name}.jsonl").write_text(pocket_text(skills / source), encoding="utf-8")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
