"""Evaluation: an unchanged model has lost nothing, a changed one shows it, and no number depends on batching."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.data.batch import Examples
from graftwood.evals import judge
from graftwood.evals.asking import Scores, score_task
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.score import ROWS, Continuation, answer_losses, continuations
from graftwood.evals.skills import compare_skills, kept_share, worst_skill
from graftwood.evals.task import Item, Task
from graftwood.files import cache_home
from graftwood.generate.engine import Engine
from graftwood.model.decoder import Decoder
from graftwood.model.expected import Expected, expect
from graftwood.samples import sample_windows
from graftwood.technique import TECHNIQUES
from graftwood.techniques.lora import LoRA
from graftwood.train.loop import Trainer

LONG = [[random.Random(n).randrange(3, 300) for _ in range(3 + n % 11)] for n in range(ROWS + 7)]


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    # Wide weights: a peaked distribution, as a trained model has, most of whose mass the probe keeps.
    return open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(init_std=0.45))), CPU)


@pytest.fixture
def probe(base: Base) -> Expected:
    return expect(base.decoder, sample_windows(base, engine(base), windows=24, length=48, seed=0))


def engine(base: Base) -> Engine:
    return Engine(base.decoder, base.tokenizer.eos, base.tokenizer)


def random_lora(decoder: Decoder, size: float) -> LoRA:
    technique = LoRA.parse({"rank": 4})
    technique.apply(decoder, seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(decoder.trained().values()):
            parameter.normal_(0.0, size, generator=torch.Generator().manual_seed(number))
    return technique


def choice_task(base: Base, right: float = 0.8) -> Task:
    """Items whose gold answer is what this base picks, except for a share of them."""
    words = [
        "the",
        "user",
        "said",
        "that",
        "this",
        "answer",
        "is",
        "ready",
        "and",
        "here",
        "to",
        "end",
        "a",
        "turn",
        "of",
        "the",
        "system",
    ]
    generator = random.Random(0)

    def text(count: int) -> str:
        return "".join(f" {generator.choice(words)}" for _ in range(count))

    asked = [(text(4).strip(), tuple(text(generator.randint(1, 3)) for _ in range(3))) for _ in range(60)]
    scored = continuations(
        base.decoder,
        [base.encoder().begin(prompt) for prompt, _ in asked],
        [base.tokenizer.encode_batch(choices) for _, choices in asked],
    )
    items = []
    for number, ((prompt, choices), found) in enumerate(zip(asked, scored, strict=True)):
        pick = max(range(3), key=lambda place: found[place].log_probability / found[place].tokens)
        gold = pick if number < right * len(asked) else (pick + 1) % 3
        items.append(Item(id=f"item-{number}", prompt=prompt, choices=choices, gold=gold))
    return Task("tiny", "tiny choices", "choice", 1, 1 / 3, "made here", "none", lambda: tuple(items))


@pytest.mark.parametrize("name", [None, *(n for n in TECHNIQUES.names() if TECHNIQUES.get(n).starts_at_base)])
def test_an_unchanged_model_has_lost_nothing(name: str | None, base: Base, probe: Expected) -> None:
    task = choice_task(base)
    before = [score_task(base, engine(base), task)]
    if name is not None:
        tiny.technique(name).apply(base.decoder, seed=0)
        base.decoder.eval()
    moved = compare(base.decoder, probe)
    assert set(moved.drift) == {0.0}
    assert set(moved.agreement) == {1.0}
    after = [score_task(base, engine(base), task)]
    (skill,) = compared = compare_skills(before, after)
    assert sum(before[0].right) == 48
    assert skill.counted
    assert (skill.lost, skill.won, skill.measure.change.value) == (0, 0, 0.0)
    share = kept_share(before, after, compared)
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)


def test_noise_loses_skill_and_says_what_flipped(base: Base) -> None:
    task = choice_task(base)
    before = score_task(base, engine(base), task)
    tiny.shake(base.decoder, 0.5)
    after = score_task(base, engine(base), task)
    (skill,) = compared = compare_skills([before], [after])
    flips = [(b, a) for b, a in zip(before.right, after.right, strict=True) if b != a]
    assert (skill.lost, skill.won) == (flips.count((1.0, 0.0)), flips.count((0.0, 1.0)))
    assert skill.lost > 0
    kept = kept_share([before], [after], compared)
    mine = (np.mean(after.soft) - 1 / 3) / (np.mean(before.soft) - 1 / 3)
    assert kept.value == pytest.approx(mine)
    assert mine < 1
    assert worst_skill(compared) == "tiny"


def test_a_skill_the_base_never_had_is_not_counted(base: Base) -> None:
    task = choice_task(base, right=0.35)
    scores = [score_task(base, engine(base), task)]
    (skill,) = compared = compare_skills(scores, scores)
    assert not skill.counted
    assert skill.kept.value is None
    assert skill.kept.note
    assert kept_share(scores, scores, compared).value is None
    assert worst_skill(compared) is None


def test_the_worst_skill_is_the_one_that_kept_least(base: Base) -> None:
    task = choice_task(base)
    tasks = [Task(name, name, "choice", 1, 0.25, "", "", task.read) for name in ("lost", "held")]
    before = [Scores(entry, (1.0,) * 50 + (0.0,) * 10) for entry in tasks]
    after = [Scores(tasks[0], (1.0,) * 30 + (0.0,) * 30), Scores(tasks[1], (1.0,) * 49 + (0.0,) * 10 + (1.0,))]
    compared = compare_skills(before, after)
    assert worst_skill(compared) == "lost"
    assert [(skill.lost, skill.won) for skill in compared] == [(20, 0), (1, 1)]
    share = kept_share(before, after, compared)
    parts = [(tuned / 60 - 0.25) / (50 / 60 - 0.25) for tuned in (30, 50)]
    assert share.value == pytest.approx(np.mean(parts))


def test_drift_grows_with_noise(base: Base, probe: Expected) -> None:
    drifts, agreements = [], []
    original = [parameter.detach().clone() for parameter in base.decoder.parameters()]
    for size in (0.0, 0.01, 0.03, 0.1, 0.3):
        with torch.no_grad():
            for parameter, was in zip(base.decoder.parameters(), original, strict=True):
                parameter.copy_(was)
        tiny.shake(base.decoder, size)
        drift, agreement = compare(base.decoder, probe).estimates()
        drifts.append(drift.value)
        agreements.append(agreement.value)
    assert drifts[0] == 0.0
    assert all(small < large for small, large in pairwise(drifts))
    assert agreements[0] == 1.0
    assert agreements[-1] < agreements[1] <= 1.0


def exact(decoder: Decoder, probe: Expected, tuned: Decoder) -> tuple[Tensor, Tensor]:
    """By window: mean KL over the whole vocabulary, and mean rise of the loss on the text itself."""
    with torch.no_grad():
        p, q = (model(probe.ids).log_softmax(-1)[:, :-1] for model in (decoder, tuned))
    said = probe.ids[:, 1:, None]
    return (p.exp() * (p - q)).sum(-1).mean(1), (p.gather(-1, said) - q.gather(-1, said))[..., 0].mean(1)


def test_drift_is_the_rise_of_loss_on_what_the_base_says(base: Base) -> None:
    """On the base's own text log p - log q has the mean KL(p || q), which the probe gives without the luck of draws."""
    probe = expect(base.decoder, sample_windows(base, engine(base), windows=80, length=64, seed=0))
    tuned = tiny.decoder(init_std=0.45)
    tiny.shake(tuned, 0.15)
    divergence, rise = exact(base.decoder, probe, tuned)
    drift = compare(tuned, probe).drift
    error = float(rise.std() / len(rise) ** 0.5)
    assert rise.mean() > 4 * error, "a change that cannot be seen proves nothing"
    assert abs(float(rise.mean()) - float(drift.mean())) < 4 * error
    assert float(divergence.mean()) * 0.9 < drift.mean() <= float(divergence.mean()) * 1.02
    assert drift.std() < rise.numpy().std(), "what the probe is for"


def test_merged_and_unmerged_have_the_same_drift(base: Base, probe: Expected) -> None:
    technique = random_lora(base.decoder, 0.15)
    apart = compare(base.decoder, probe).drift
    technique.merge(base.decoder)
    assert apart.mean() > 0.01
    np.testing.assert_allclose(compare(base.decoder, probe).drift, apart, rtol=1e-3)


def test_with_the_adapter_off_the_base_has_its_own_losses(base: Base, probe: Expected) -> None:
    rows = tiny.examples(12)
    before = answer_losses(base.decoder, rows)
    random_lora(base.decoder, 0.3)
    assert answer_losses(base.decoder, rows) != before
    with base.decoder.without_deltas():
        assert answer_losses(base.decoder, rows) == before
        assert set(compare(base.decoder, probe).drift) == {0.0}


def test_losses_are_those_of_the_right_tokens(base: Base, tmp_path: Path) -> None:
    """A model that knows its rows by heart is surprised by the same answers in another order: nothing is shifted."""
    rows = [row for row in tiny.examples(40) if row.answer_tokens >= 4][:6]
    base.decoder.requires_grad_(True)
    list(
        Trainer(
            base.decoder, Examples(rows), Examples([]), tiny.plan(epochs=60.0, learning_rate=1e-2), tmp_path / "steps"
        ).run()
    )
    known = answer_losses(base.decoder, rows)
    assert [count for _, count in known] == [row.answer_tokens for row in rows]
    shifted = [tiny.example([*row.ids[:1], *row.ids[:0:-1]], list(row.answer)) for row in rows]
    mean, other = (
        sum(t for t, _ in losses) / sum(n for _, n in losses)
        for losses in (known, answer_losses(base.decoder, shifted))
    )
    assert mean < 0.3
    assert other > 10 * mean
    assert other > 3.0


def test_a_token_is_judged_where_the_one_before_it_stands(base: Base) -> None:
    rows = tiny.examples(12)
    expected = []
    for row in rows:
        with torch.no_grad():
            table = base.decoder(torch.tensor([row.ids]))[0].log_softmax(-1)
        places = [place for place in range(1, len(row.ids)) if row.answer[place]]
        expected.append((-sum(float(table[place - 1, row.ids[place]]) for place in places), len(places)))
    np.testing.assert_allclose(answer_losses(base.decoder, rows), expected, rtol=1e-5)


def slow(decoder: Decoder, context: list[int], choice: list[int]) -> Continuation:
    with torch.no_grad():
        table = decoder(torch.tensor([[*context, *choice]]))[0, len(context) - 1 : -1].log_softmax(-1)
    found = table[range(len(choice)), choice].sum()
    return Continuation(float(found), len(choice), table.argmax(-1).tolist() == choice)


def greedy(decoder: Decoder, context: list[int], count: int) -> list[int]:
    ids = list(context)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(context) :]


@pytest.fixture
def questions(base: Base) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Contexts and choices of unequal lengths and numbers, some of them what greedy decoding says."""
    generator = random.Random(3)
    choices = []
    for context in LONG:
        these = [
            [generator.randrange(3, 300) for _ in range(generator.randint(1, 6))]
            for _ in range(generator.randint(1, 4))
        ]
        these.insert(generator.randint(0, len(these)), greedy(base.decoder, context, generator.randint(1, 4)))
        choices.append(these)
    return LONG, choices


def close(found: Continuation, expected: Continuation) -> bool:
    same = (found.tokens, found.greedy) == (expected.tokens, expected.greedy)
    return same and found.log_probability == pytest.approx(expected.log_probability, rel=1e-4, abs=1e-4)


def pairs(found: list[list[Continuation]], expected: list[list[Continuation]]) -> Iterator[tuple[Continuation, ...]]:
    for one, other in zip(found, expected, strict=True):
        yield from zip(one, other, strict=True)


def test_continuations_are_scored_as_a_full_forward_does(base: Base, questions: tuple) -> None:
    contexts, choices = questions
    expected = [[slow(base.decoder, c, choice) for choice in these] for c, these in zip(contexts, choices, strict=True)]
    found = list(pairs(continuations(base.decoder, contexts, choices), expected))
    assert all(close(*pair) for pair in found)
    assert {expected.tokens for _, expected in found} >= {1, 2, 5}
    assert sum(expected.greedy for _, expected in found) == len(contexts)


def test_no_score_depends_on_what_is_scored_beside_it(base: Base, questions: tuple) -> None:
    contexts, choices = questions
    together = continuations(base.decoder, contexts, choices)
    alone = [continuations(base.decoder, [c], [these])[0] for c, these in zip(contexts, choices, strict=True)]
    assert all(close(*pair) for pair in pairs(together, alone))
    order = random.Random(0).sample(range(len(contexts)), len(contexts))
    turned = continuations(base.decoder, [contexts[n] for n in order], [choices[n][::-1] for n in order])
    assert all(close(*pair) for pair in pairs([these[::-1] for these in turned], [together[n] for n in order]))


def test_what_neighbours_begin_with_is_read_once_and_changes_nothing(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts with a long common beginning, some with another one between them, one that is the beginning itself."""
    generator = random.Random(5)

    def some(count: int) -> list[int]:
        return [generator.randrange(3, 300) for _ in range(count)]

    common = some(60)
    contexts = [[*(some(60) if n % 5 == 4 else common), *some(n % 7)] for n in range(17)] + [common, some(2)]
    choices = [[some(generator.randint(1, 5)) for _ in range(3)] for _ in contexts]
    expected = [[slow(base.decoder, c, choice) for choice in these] for c, these in zip(contexts, choices, strict=True)]
    read = 0
    hidden = base.decoder.hidden

    def counted(ids: Tensor, *more: object, **named: object) -> Tensor:
        nonlocal read
        read += ids.numel()
        return hidden(ids, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(base.decoder, "hidden", counted)
    found = list(pairs(continuations(base.decoder, contexts, choices), expected))
    assert all(close(*pair) for pair in found)
    assert read < 0.6 * sum(map(len, contexts))


def test_no_loss_depends_on_the_rows_beside_it(base: Base) -> None:
    rows = tiny.examples(120)
    together = answer_losses(base.decoder, rows)
    alone = [answer_losses(base.decoder, [row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert answer_losses(base.decoder, []) == []


def test_what_is_longer_than_the_context_loses_its_beginning(base: Base) -> None:
    words = " the user said that" * 60
    long, short = (Item(f"{n}", text, (" here", " the answer is ready")) for n, text in enumerate((words, words[19:])))
    found = [score_task(base, engine(base), choice_task(base).of((item,))).soft for item in (long, short)]
    assert len(base.encoder().begin(short.prompt)) > base.decoder.context
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_greedy_words_are_right_and_others_wrong(base: Base) -> None:
    prompts = ["the user", "this is the end of a turn", "here"]
    said = [greedy(base.decoder, base.encoder().begin(prompt), 1) for prompt in prompts]
    words = [base.tokenizer.decode(ids) for ids in said]
    kept = [n for n, (ids, word) in enumerate(zip(said, words, strict=True)) if base.tokenizer.encode(word) == ids]
    assert kept, "a tiny model may say bytes that are no text, but not always"
    items = [Item(id=str(n), prompt=prompts[n], answer=words[n]) for n in kept]
    items += [Item(id=f"not {n}", prompt=prompts[n], answer=words[n] + " not") for n in kept]
    task = Task("word", "word", "word", 1, 0.0, "", "", lambda: tuple(items))
    assert score_task(base, engine(base), task).right == (1.0,) * len(kept) + (0.0,) * len(kept)


def test_the_probe_is_made_once_from_the_base_alone(base: Base) -> None:
    first = probe_for(base, engine(base))
    (folder,) = (cache_home() / "samples").iterdir()
    assert folder.name.startswith(base.fingerprint[:16])
    assert "float32" in folder.name
    tiny.shake(base.decoder, 0.5)
    again = probe_for(base, engine(base))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.log_p, again.log_p)
    assert compare(base.decoder, again).drift.mean() > 0
    torch.testing.assert_close(first.log_p.exp().sum(-1), torch.ones(first.ids.shape), rtol=0, atol=1e-5)


def test_the_probe_begins_as_documents_and_as_conversations(base: Base) -> None:
    windows = sample_windows(base, engine(base), windows=6, length=20, seed=0)
    opening = base.template.opening()
    assert windows.shape == (6, 20)
    assert len(opening) > 1
    assert windows[0::2, 0].tolist() == [base.tokenizer.bos] * 3
    assert windows[1::2, : len(opening)].tolist() == [opening] * 3
    assert len({tuple(window) for window in windows.tolist()}) == 6
    assert torch.equal(windows, sample_windows(base, engine(base), windows=6, length=20, seed=0))
    assert sample_windows(base, engine(base), windows=4, length=len(opening), seed=0).shape == (4, len(opening))


def test_nothing_that_measures_was_trained_on(base: Base) -> None:
    train, valid, test = tiny.encoded(base, 90), tiny.encoded(base, 30, 100), tiny.encoded(base, 150, 200)
    paper = judge.set_paper(base.encoder(), train, valid, test, seed=0)
    trained = {example.ids for example in train}
    assert not trained & {example.ids for example in (*paper.heldout, *paper.valid)}
    assert trained >= {example.ids for example in paper.train}
    assert (paper.split, len(paper.heldout), len(paper.train), len(paper.valid)) == (
        "test",
        judge.ANSWERED_ROWS,
        30,
        30,
    )
    runs = {ids[at : at + 8] for ids in trained for at in range(len(ids) - 7)}
    windows = [tuple(window) for window in probe_for(base, engine(base)).ids.tolist()]
    assert runs
    assert not runs & {window[at : at + 8] for window in windows for at in range(len(window) - 7)}
