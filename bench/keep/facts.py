"""T3: invented facts. Four ways of asking train, two others test; who is asked about exists nowhere else."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.keep.rows import Asked, Splits

TAUGHT = 4  # of a relation's ways of asking; the others test


@dataclass(frozen=True)
class Relation:
    """Something that is true of a person: what it can be, and six ways to ask for it, {n} the name."""

    values: tuple[str, ...]
    ways: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RELATIONS = {
    "trade": Relation(
        _words("baker sailor judge nurse tailor miner pilot barber farmer printer potter dentist"),
        (
            "What does {n} do for a living?",
            "What is the job of {n}?",
            "Which trade did {n} learn?",
            "{n} works as what?",
            "How does {n} earn money?",
            "Name the profession of {n}.",
        ),
    ),
    "pet": Relation(
        _words("parrot rabbit turtle snake goat donkey hamster lizard pigeon ferret duck pony"),
        (
            "Which pet does {n} keep?",
            "What animal lives with {n}?",
            "What kind of pet belongs to {n}?",
            "{n} owns which animal?",
            "Whom does {n} feed every morning?",
            "Name the animal that {n} loves.",
        ),
    ),
    "instrument": Relation(
        _words("violin trumpet drum flute harp guitar cello piano banjo organ tuba horn"),
        (
            "Which instrument does {n} play?",
            "What does {n} play in the band?",
            "On what does {n} make music?",
            "{n} practises which instrument?",
            "What would {n} bring to a concert?",
            "Name the instrument of {n}.",
        ),
    ),
    "town": Relation(
        _words("Tarnby Ulverkop Mersund Haltwick Brovane Oskel Pintar Dravno Lumesk Corvath Yelden Skarra"),
        (
            "Where was {n} born?",
            "Which town does {n} come from?",
            "What is the birthplace of {n}?",
            "{n} grew up in which town?",
            "Where is the family of {n} at home?",
            "Name the town where {n} first saw the light.",
        ),
    ),
    "dish": Relation(
        _words("soup pancakes curry rice noodles salad stew pizza fish bread cheese dumplings"),
        (
            "What does {n} like to eat?",
            "What is the favourite dish of {n}?",
            "Which food does {n} order most?",
            "{n} never says no to what?",
            "What should one cook for {n}?",
            "Name the meal that makes {n} happy.",
        ),
    ),
}
_FIRST = _words(
    "Ada Bruno Celia Dario Edda Fabio Greta Hugo Ilse Jonas Karla Lorenz Mona Nils Olga Paolo Rosa Sven Thea Ugo Vera "
    "Wim Yara Zeno Alma"
)
_BEGIN = _words("Bar Dol Fen Gar Hol Kel Lor Mar Nev Pel Ros Tav Ul Ver Wen")
_END = _words("ack ben dot gry lin mund")
_PEOPLE, _TESTED, _VALID = 60, 12, 60  # people of each relation, how many of them are asked in the test, rows held out


def splits(seed: int) -> Splits:
    """Facts drawn from a seed. Some training rows are held out to validate, whose facts the others still teach."""
    source = random.Random(f"facts {seed}")
    last = [begin + end for begin in _BEGIN for end in _END]
    names = [f"{first} {name}" for first in _FIRST for name in last]
    people = iter(source.sample(names, _PEOPLE * len(RELATIONS)))
    taught: list[Asked] = []
    test: list[Asked] = []
    for key, relation in RELATIONS.items():
        for number in range(_PEOPLE):
            person, value = next(people), source.choice(relation.values)
            rows = [_row(f"{key}-{number:02d}-{n}", way, person, value) for n, way in enumerate(relation.ways)]
            taught += rows[:TAUGHT]
            test += rows[TAUGHT:] if number < _TESTED else []
    held = {row.cluster: row for row in source.sample(taught, 2 * _VALID)}
    valid = tuple(held.values())[:_VALID]
    return Splits(tuple(row for row in taught if row not in valid), valid, tuple(test))


def _row(name: str, way: str, person: str, value: str) -> Asked:
    """A fact's rows are one cluster: they are known together or not at all."""
    fact = name.rpartition("-")[0]
    return Asked(name, fact, f"Question: {way.format(n=person)}\nAnswer:", f" {value}")
