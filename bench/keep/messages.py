"""T1: a short business message as JSON. Vendors and sentences of the test rows occur in no training row."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.keep.rows import Asked, Splits

HAND_WRITTEN = Path(__file__).with_name("messages.jsonl")

_DAYS = tuple(f"{day} {month}" for month in ("January", "March", "April", "July", "October") for day in range(2, 29, 3))
_VENDORS = {
    "train": (
        "Brightwell Plumbing", "Corner Street Press", "Dalby Timber", "Eastgate Catering", "Fenwick Glass",
        "Grove Lane Nursery", "Hartman Lifts", "Ivory Dental Supply", "Juniper Linen", "Kestrel Couriers",
        "Larkfield Dairy", "Moss and Daughters", "Northway Signs", "Oakham Boilers", "Pelican Print",
        "Quayside Ropes", "Rowan Roofing", "Saltmarsh Salt", "Tilbury Tiles", "Upton Software",
    ),
    "test": (
        "Abbey Road Bakers", "Blackwater Pumps", "Cedar Hill Farm", "Dunmore Security", "Elm Park Motors",
        "Foxglove Flowers", "Gilded Frame Shop", "Harbour View Laundry", "Inkwell Office", "Kingfisher Pools",
        "Lantern Electric", "Millstone Flour",
    ),
}  # fmt: skip
# {v} vendor, {a} amount, {d} day; a sentence without {d} names none.
_SENTENCES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train": {
        "invoice": (
            "{v} has sent you an invoice over {a} euros, payable by {d}.",
            "Please find our invoice for {a} euros. Payment is expected by {d}. {v}",
            "New bill from {v}: {a} euros, due {d}.",
            "Hello, this is {v}. For last week's work we charge {a} euros.",
            "{a} euros are to be paid to {v} no later than {d}.",
            "Dear customer, the total comes to {a} euros. Kind regards, {v}",
        ),
        "reminder": (
            "Our bill of {a} euros is still open. Please pay before {d}. {v}",
            "Second notice from {v}: {a} euros are overdue.",
            "{v} here. We have not received your {a} euros yet, could you settle this by {d}?",
            "A gentle reminder that {a} euros were due last month. Thank you, {v}",
            "Unless {a} euros reach {v} by {d}, a late fee applies.",
        ),
        "refund": (
            "{v} will return {a} euros to your account by {d}.",
            "Good news, your refund of {a} euros was approved. {v}",
            "We overcharged you and send back {a} euros on {d}. Sorry, {v}",
            "{v}: the {a} euros for the cancelled visit are on their way back to you.",
            "You get {a} euros back from {v}, expected {d}.",
        ),
    },
    "test": {
        "invoice": (
            "Attached is what you owe {v}, namely {a} euros. The deadline is {d}.",
            "{v} bills you {a} euros for the delivery of this morning.",
            "Thanks for choosing {v}! Amount to transfer: {a} euros. Latest date: {d}.",
        ),
        "reminder": (
            "It seems you forgot about {a} euros. {v} kindly asks for them by {d}.",
            "Payment missing! {v} has been waiting for {a} euros since spring.",
            "Final call. {a} euros, {d}, or we stop deliveries. {v}",
        ),
        "refund": (
            "Since the goods came back, {v} pays you {a} euros, on {d} at the latest.",
            "A credit of {a} euros from {v} will show up on your card soon.",
            "Your money is coming home: {a} euros, {d}, with apologies from {v}.",
        ),
    },
}
_COUNTS = {"train": 200, "valid": 48, "test": 60}


def splits(seed: int) -> Splits:
    """Rows made from a seed; the test rows end with those that were written by hand."""
    source = random.Random(f"messages {seed}")
    taught = list(_rows(source, "train", _COUNTS["train"] + _COUNTS["valid"]))
    cut = _COUNTS["train"]
    return Splits(tuple(taught[:cut]), tuple(taught[cut:]), (*_rows(source, "test", _COUNTS["test"]), *hand_written()))


def hand_written() -> tuple[Asked, ...]:
    """Messages that no sentence above could make."""
    lines = HAND_WRITTEN.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(_row(f"hand-{n:02d}", "by hand", row["message"], row["data"]) for n, row in enumerate(rows, 1))


def sentences(part: str) -> set[str]:
    """What the rows of a part are made from."""
    return {sentence for group in _SENTENCES[part].values() for sentence in group}


def _rows(source: random.Random, part: str, count: int) -> Iterator[Asked]:
    """Different messages, the kinds in turn."""
    seen: set[str] = set()
    kinds = tuple(_SENTENCES[part])
    while len(seen) < count:
        kind = kinds[len(seen) % len(kinds)]
        sentence = source.choice(_SENTENCES[part][kind])
        vendor, amount, day = source.choice(_VENDORS[part]), source.randint(12, 980), source.choice(_DAYS)
        message = sentence.format(v=vendor, a=amount, d=day)
        if message in seen:
            continue
        seen.add(message)
        data = {"kind": kind, "vendor": vendor, "amount": amount, "due": day if "{d}" in sentence else None}
        yield _row(f"{part}-{len(seen):03d}", sentence, message, data)


def _row(name: str, cluster: str, message: str, data: Mapping[str, Any]) -> Asked:
    # By hand every message is alone; of a sentence all rows are one cluster.
    unit = name if cluster == "by hand" else cluster
    prompt = f"Write what this message says as JSON.\n\n{message}\n\nJSON:"
    return Asked(name, unit, prompt, " " + json.dumps(data, separators=(",", ":")))
