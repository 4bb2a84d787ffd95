import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "orders"
ROWS = {"train": 200, "valid": 40, "test": 60}
KEYS = ["intent", "product", "quantity", "day", "urgent"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "dozen"]
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)} | {"a": 1, "an": 1, "twenty": 20, "forty": 40}
NUMBERS |= {"eighty": 80}

spec = importlib.util.spec_from_file_location("orders_make", FOLDER / "make.py")
assert spec
assert spec.loader
make = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = make
spec.loader.exec_module(make)


def load(split):
    rows = []
    for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith(make.INSTRUCTION)
        rows.append((user["content"].removeprefix(make.INSTRUCTION), assistant["content"]))
    return rows


NUMBERS = {word: number for number, word in enumerate(make.NUMBERS) if number}
NUMBERS |= {"a": 1, "an": 1, "twenty": 20, "forty": 40, "eighty": 80}
DATA = {split: load(split) for split in ROWS}
ALL = [(split, message, json.loads(answer)) for split in ROWS for message, answer in DATA[split]]
NUMBER = rf"(?:\d+|{'|'.join(NUMBERS)})"
DATE = rf"\d+ (?:{'|'.join(make.MONTHS)})|(?:{'|'.join(make.MONTHS)}) \d+"
DAY = rf"\b(?:(?:next |last )?(?:{'|'.join(make.WEEKDAYS)}|sat)|today|tomorr?ow|yesterday|{DATE})\b"


def plain(text):
    return text.lower().replace("'", "")


@cache
def pattern(template):
    """A template as a regular expression over plain text in which every slot stands for anything."""
    text = plain(template).rstrip(".").replace("{fast}", "{any}")
    parts = re.split(r"([\[\]()/]|\{\w+\})", text)
    known = {"[": "(?:", "]": ")?", "(": "(?:", "/": "|", ")": ")", "{any}": ".*?"}
    return re.compile("".join(known.get(part, ".+?" if part.startswith("{") else re.escape(part)) for part in parts))


def matches(words, message, intent=None):
    intents = [intent] if intent else words.templates
    return [t for name in intents for t in words.templates[name] if pattern(t).search(plain(message))]


def test_make_reproduces_the_committed_files(tmp_path):
    subprocess.run([sys.executable, str(FOLDER / "make.py"), str(tmp_path)], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "valid.jsonl"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


@pytest.mark.parametrize("split", ROWS)
def test_counts_and_balance(split):
    answers = [json.loads(answer) for _, answer in DATA[split]]
    assert len(answers) == ROWS[split]
    assert set(Counter(answer["intent"] for answer in answers).values()) == {ROWS[split] // 5}
    for intent in make.INTENTS:
        urgent = [answer["urgent"] for answer in answers if answer["intent"] == intent]
        assert 0.3 <= sum(urgent) / len(urgent) <= 0.6
    for key in ("product", "quantity", "day"):
        assert 0.05 <= sum(answer[key] is None for answer in answers) / len(answers) <= 0.65


def test_there_are_enough_templates():
    assert sum(len(templates) for templates in make.TRAIN.templates.values()) >= 60


@pytest.mark.parametrize("split", ROWS)
def test_answers_are_compact_json_with_the_keys_in_order(split):
    for message, text in DATA[split]:
        answer = json.loads(text)
        assert text == json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        assert list(answer) == KEYS
        assert answer["intent"] in make.INTENTS
        assert type(answer["urgent"]) is bool
        assert answer["quantity"] is None or (type(answer["quantity"]) is int and answer["quantity"] > 0)
        assert all(answer[key] is None or answer[key].strip() for key in ("product", "day"))
        assert len(message.split()) <= 40


@pytest.mark.parametrize("split", ROWS)
def test_answers_are_in_the_messages(split):
    for message, text in DATA[split]:
        answer = json.loads(text)
        product, quantity, day = answer["product"], answer["quantity"], answer["day"]
        before = product and re.search(rf"(\b{NUMBER} )?\b{re.escape(product)}\b", message)
        assert product is None or before, message
        if quantity is None:
            assert not (before and before[1]), message
        else:
            said = [before[1].strip()] if before[1] else re.findall(rf"\b{NUMBER}\b", message.lower())
            assert quantity in [NUMBERS.get(word) or int(word) for word in said], message
        assert re.findall(DAY, message, re.IGNORECASE) == ([day] if day else []), message


def test_haste_decides_urgent_in_the_made_splits():
    for split, words in (("train", make.TRAIN), ("valid", make.VALID)):
        for message, text in DATA[split]:
            rest = plain(message)
            for phrase in words.calm:
                rest = pattern(phrase).sub("", rest)
            hurried = any(pattern(phrase).search(rest) for phrase in (*words.haste, *words.fast))
            assert hurried == json.loads(text)["urgent"], message


def test_products_are_disjoint():
    products = {"train": set(), "valid": set(), "test": set()}
    for split, _, answer in ALL:
        if answer["product"]:
            products[split].add(answer["product"].lower())
    for split, words in (("train", make.TRAIN), ("valid", make.VALID)):
        products[split] |= {form.lower() for name in words.products for form in (name, make.plural(name))}
    for one, other in combinations(products.values(), 2):
        assert not one & other
    assert len(products["test"]) == sum(split == "test" and answer["product"] is not None for split, _, answer in ALL)


def test_the_words_around_are_disjoint_too():
    for name in ("haste", "calm", "asides", "openings", "closings"):
        assert not set(getattr(make.TRAIN, name)) & set(getattr(make.VALID, name))


def test_no_two_messages_are_close():
    sets = [make.word_set(message) for _, message, _ in ALL]
    assert max(make.shared(one, other) for one, other in combinations(sets, 2)) <= make.MAX_SHARED
    assert len({message for _, message, _ in ALL}) == len(ALL)


def test_templates_make_their_own_split_only():
    for message, text in DATA["train"]:
        assert matches(make.TRAIN, message, json.loads(text)["intent"])
        assert not matches(make.VALID, message)
    for message, text in DATA["valid"]:
        assert matches(make.VALID, message, json.loads(text)["intent"])
        assert not matches(make.TRAIN, message)
    for message, _ in DATA["test"]:
        assert not [*matches(make.TRAIN, message), *matches(make.VALID, message)]
