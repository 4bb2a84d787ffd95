"""Text to a model and on from there: the dial, the run, its folder, and what cannot work."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from conftest import CPU
from graftwood import pretraining
from graftwood import run as graft
from graftwood.base import open_base
from graftwood.config import PretrainConfig, RunConfig, count, read_config, save_toml
from graftwood.data.corpus import ARRAYS, VALID, Stream, open_corpus
from graftwood.errors import ConfigError, DataError
from graftwood.evals.report import read_report
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.progress import Display
from graftwood.scaling import GIVEN, budget, optimiser, sizes
from graftwood.train.loop import NonFiniteLossError, Trainer, mean_loss

QUIET = Display(quiet=True)
SMALL = {
    "tokenizer": "chars", "layers": 1, "width": 32, "heads": 2, "context": 32, "batch_tokens": 256, "tokens": 20_000,
    "evaluations": 4, "sample_tokens": 6, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "verses.txt"
    generator = random.Random(0)
    lines = [f"the {generator.choice(['cat', 'dog'])} {generator.choice(['sat', 'ran'])}.\n" for _ in range(1500)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "verses"
    assert graft.pretrain(text, quiet=True, out=str(out), **SMALL).folder == str(out)
    return out


def test_it_learns_and_says_so_in_bits_a_byte(trained: Path) -> None:
    told = json.loads((trained / "pretrain.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [line for line in log if "eval_loss" in line]
    assert len(evaluated) == 5
    assert evaluated[-1]["eval_loss"] < 0.5 * evaluated[0]["eval_loss"]
    corpus = open_corpus(trained / "corpus")
    assert told["bits_per_byte"] == pytest.approx(
        told["valid_loss"] / math.log(2) * corpus.tokens[VALID] / corpus.bytes[VALID]
    )
    assert all(len(line["sample"]) <= 6 for line in evaluated)
    assert told["settings"]["width"] == {"value": 32, "source": GIVEN}
    assert told["stopped"] == "all steps done"


def test_the_model_is_a_base_like_any_other(trained: Path, tmp_path: Path) -> None:
    model = graft.load(trained, device="cpu")
    assert "the" in str(model.generate("the ", max_tokens=20, temperature=0.5))
    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": f"the cat {n % 7}", "completion": "sat."} for n in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    draft = RunConfig(data=str(rows), model=str(trained), technique="lora", device="cpu")
    assert graft.dry_run(draft, QUIET).trained_parameters > 0
    bare = RunConfig(data=str(rows), model=str(trained), out=str(tmp_path / "run"), device="cpu")
    card = graft.run(bare, QUIET).report
    assert card.choice is None, "with 32 tokens at once it has no ability that a budget could be of"
    assert any("so no share can be kept: a plain run" in line for line in card.warnings)


def test_the_last_sample_is_written_by_the_model_that_is_saved(text: Path, tmp_path: Path) -> None:
    options = SMALL | {"average": 1000.0, "sample_prompt": "the ", "sample_tokens": 12, "out": str(tmp_path / "run")}
    sample = graft.pretrain(text, quiet=True, **options).sample
    saved = graft.load(tmp_path / "run", device="cpu")
    assert sample == "the " + saved.generate("the ", temperature=0.8, seed=0, max_tokens=12)


def test_transformers_loads_the_folder(trained: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(trained / "model")
    ours = graft.load(trained, device="cpu").base
    ids = torch.tensor([ours.encoder().begin("the cat sat.\nthe")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.decoder(ids), rtol=1e-4, atol=1e-4)
    read = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert read("the cat")["input_ids"] == ours.encoder().begin("the cat")


def test_it_goes_on_from_a_new_model(trained: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    more = {"model": str(trained), "context": 32, "tokens": 4000, "batch_tokens": 256, "evaluations": 1,
            "sample_tokens": 0, "device": "cpu"}  # fmt: skip
    result = graft.pretrain_with(PretrainConfig(data=str(text), out=str(out), **more), QUIET)
    before = json.loads((trained / "pretrain.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[0]["eval_loss"] == pytest.approx(before["valid_loss"], abs=0.1)
    assert result.parameters == before["parameters"]
    assert (out / "model" / "model.safetensors").exists()
    card = read_report(out)
    assert not card.kept.skills, "32 tokens at once are too few for its questions"
    assert any("items do not fit in 32 positions" in line for line in card.warnings)
    assert card.kept.drift.value is not None


def test_a_base_that_goes_on_learning_has_a_report_card(
    text: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTWOOD_HOME", str(tmp_path / "home"))
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    config = PretrainConfig(data=str(text), model=str(folder), out=str(tmp_path / "run"), tokens=8000, lr=0.01,
                            batch_tokens=512, evaluations=2, sample_tokens=4, device="cpu")  # fmt: skip
    result = graft.pretrain_with(config, QUIET)
    card = read_report(tmp_path / "run")
    (loss,) = card.gained.measures
    assert (loss.name, loss.change.value) == ("answer_loss", pytest.approx(loss.tuned.value - loss.base.value))
    assert loss.change.value < -0.5
    assert card.kept.drift.value > 0.1
    assert card.chosen.settings["learning rate"] == "0.01"
    assert card.curve[-1].valid_loss == result.valid_loss
    assert card.curve[-1].drift > 0


def test_a_run_file_names_the_adapter_that_is_folded_in(
    text: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    (tmp_path / "tuned").mkdir()
    save_toml(RunConfig(data="rows.jsonl", model=str(folder)), tmp_path / "tuned" / "run.toml")
    tiny.adapter(open_base(str(folder), CPU), "lora", tmp_path / "tuned" / "adapter")
    monkeypatch.chdir(tmp_path)
    given = {"data": str(text), "model": "tuned", "context": 32, "batch_tokens": 256, "tokens": 256, "device": "cpu"}
    config = PretrainConfig(out="more", sample_tokens=0, **given)
    begun = pretraining.prepare(config, graft._continued(config), tmp_path / "more", QUIET)
    save_toml(begun.config, tmp_path / "run.toml")
    monkeypatch.chdir("/")
    again = read_config(PretrainConfig, tmp_path / "run.toml", {"out": str(tmp_path / "again")})
    repeated = pretraining.prepare(again, graft._continued(again), tmp_path / "again", QUIET)
    ids = torch.arange(3, 40).unsqueeze(0)
    assert torch.equal(repeated.base.decoder(ids), begun.base.decoder(ids))
    assert not torch.equal(repeated.base.decoder(ids), graft.load(folder, device="cpu").base.decoder(ids))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_window_is_no_longer_than_the_base_s_positions(
    architecture: str, text: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    made = Decoder(ARCHITECTURES.get(architecture), tiny.config(architecture, max_positions=64))
    made.initialise(seed=0)
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files, made)
    config = PretrainConfig(data=str(text), model=str(folder), context=65, device="cpu")
    with pytest.raises(ConfigError, match="tiny has 64 positions; give --context up to that, not 65"):
        pretraining.prepare(config, graft._continued(config), tmp_path / "run", QUIET)


def test_options_that_nothing_would_read_are_refused(
    trained: Path, text: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    corpus = str(trained / "corpus")
    for given, said in (
        (
            {"data": str(text), "model": str(trained), "depth": 9, "head": "own", "tokenizer": "chars"},
            "the base model decides --depth, --head, --tokenizer: what is given",
        ),
        (
            {"data": corpus, "held_out": 0.3, "vocab": 300},
            f"the prepared corpus {corpus} decides --vocab, --held-out: what is given",
        ),
        (
            {"data": corpus, "model": str(trained), "kv_heads": 1, "separator": "---"},
            f"the base model decides --kv-heads; the prepared corpus {corpus} decides --separator: what is given",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            graft.pretrain(quiet=True, out=str(tmp_path / "run"), **given)
    # What a run has written down is what it was given, so that it goes on as it was.
    again = read_config(PretrainConfig, trained / "run.toml", {})
    graft.pretrain_with(again, QUIET, resume=True)


def test_bits_a_byte_are_of_what_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [f"row {n}: {'ab'[n % 2] * (n % 7)}" for n in range(200)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    config = PretrainConfig(data=str(path), out=str(tmp_path / "run"), **SMALL | {"tokenizer": "bytes"})
    job = pretraining.prepare(config, None, tmp_path / "run", QUIET)
    documents = job.corpus.documents[VALID]
    assert documents > 5, "whole documents are held out"
    with torch.no_grad():
        for parameter in job.base.decoder.parameters():
            parameter.zero_()
    loss = mean_loss(job.base.decoder, job.valid.packs(range(len(job.valid)), 1000))
    assert loss == pytest.approx(math.log(job.corpus.vocab_size)), "every token is as likely"
    predicted = job.corpus.bytes[VALID] + documents  # every byte, and what ends a document
    expected = predicted * math.log2(job.corpus.vocab_size) / job.corpus.bytes[VALID]
    assert loss * job.bits_a_nat == pytest.approx(expected)


def test_a_corpus_of_another_tokenizer_stops_the_run(trained: Path, text: Path, tmp_path: Path) -> None:
    config = PretrainConfig(data=str(text), out=str(tmp_path / "bytes"), **SMALL | {"tokenizer": "bytes"})
    graft.dry_pretrain(config, QUIET)
    other = PretrainConfig(data=str(tmp_path / "bytes" / "corpus"), model=str(trained), out=str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"was encoded by another tokenizer .* prepare it with --tokenizer"):
        graft.pretrain_with(other, QUIET)


def test_what_a_forecast_left_is_gone_on_with_and_nothing_else_is_replaced(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = SMALL | {"tokens": 2000, "out": str(out)}
    graft.dry_pretrain(PretrainConfig(data=str(text), **options), QUIET)
    (out / "start" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"start would be replaced, and mine.txt in it is nothing that a run wrote"):
        graft.pretrain(text, quiet=True, **options)
    (out / "start" / "mine.txt").rename(out / "mine.txt")
    (out / "model").mkdir()
    (out / "mine.txt").rename(out / "model" / "mine.txt")
    with pytest.raises(ConfigError, match="model would be replaced, and no run here wrote that"):
        graft.pretrain(text, quiet=True, **options)
    (out / "model" / "mine.txt").unlink()
    assert graft.pretrain(text, quiet=True, **options).stopped == "all steps done"


def test_a_kind_of_tokenizer_is_one_whatever_a_folder_is_called(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chars").mkdir()
    graft.dry_pretrain(PretrainConfig(data=str(text), out="run", **SMALL), QUIET)
    assert "<|unknown|>" in (tmp_path / "run" / "corpus" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")


def test_damage_and_too_little_text_are_found_before_training(text: Path, tmp_path: Path) -> None:
    config = PretrainConfig(data=str(text), out=str(tmp_path / "run"), **SMALL)
    graft.dry_pretrain(config, QUIET)
    with pytest.raises(DataError, match=r"fewer than one window of 100000; add text, or give --context \d+"):
        graft.dry_pretrain(config.model_copy(update={"context": 100_000}), QUIET)
    shard = next((tmp_path / "run" / "corpus").rglob("tokens.npy"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens\.npy is damaged or cut short"):
        graft.pretrain_with(config, QUIET)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_is_no_number_names_the_windows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat.\n" * 300 + "Z" + "the dog ran.\n" * 300, encoding="utf-8")
    config = PretrainConfig(data=str(path), out=str(tmp_path / "run"), **SMALL | {"head": "own"})
    job = pretraining.prepare(config, None, tmp_path / "run", QUIET)
    (token,) = job.base.tokenizer.encode("Z")
    with torch.no_grad():
        job.base.decoder.embedding.weight[token] = torch.inf
    trainer = Trainer(job.base.decoder, job.train, job.valid or pretraining.NOTHING, job.plan, tmp_path / "steps")
    with pytest.raises(NonFiniteLossError, match=rf"loss nan.* from rows {path}:1 \(tokens \d+ to \d+\)") as caught:
        list(trainer.run())
    start, end = map(int, re.findall(r"tokens (\d+) to (\d+)", str(caught.value))[0])
    assert token in job.corpus.stream("train")[start:end]


@pytest.mark.parametrize("wanted", [300_000, 1_000_000, 5_000_000, 10_000_000, 124_000_000, 1_500_000_000])
def test_the_dial_of_parameters_is_met(wanted: int) -> None:
    model, settings = sizes(PretrainConfig(data="x", params=wanted), 4096)
    with torch.device("meta"):
        made = count_parameters(Decoder(ARCHITECTURES.get("llama"), model).parameters())
    assert made == pytest.approx(wanted, rel=0.2 if wanted < 2_000_000 else 0.1)
    assert 16 <= model.hidden_size / model.layers <= 160
    assert all(setting.source != GIVEN for setting in settings.values())


@pytest.mark.parametrize(
    "given",
    [
        {"layers": 24},
        {"layers": 2},
        {"width": 256},
        {"width": 128},
        {"head": "own"},
        {"head": "own", "layers": 12},
        {"feed_forward": 256},
        {"feed_forward": 4096, "width": 192},
    ],
)
def test_the_dial_of_parameters_is_met_by_what_is_not_given(given: dict[str, object]) -> None:
    model, _ = sizes(PretrainConfig(data="x", params=10_000_000, **given), 4096)
    with torch.device("meta"):
        made = count_parameters(Decoder(ARCHITECTURES.get("llama"), model).parameters())
    assert made == pytest.approx(10_000_000, rel=0.2)
    had = {"layers": model.layers, "width": model.hidden_size, "feed_forward": model.feed_forward_size}
    assert {name: had[name] for name in given if name in had} == {k: v for k, v in given.items() if k != "head"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 200, "width": 512}, "a vocabulary of 4,096, these --layers, this --width has"),
        ({"layers": 4, "params": 10_000}, "a vocabulary of 4,096, these --layers has"),
        ({"width": 2048}, "a vocabulary of 4,096, this --width has"),
    ],
)
def test_a_dial_that_what_is_given_keeps_from_being_met(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sizes(PretrainConfig(data="x", **{"params": 10_000_000} | given), 4096)


def test_what_is_given_overrides_what_follows() -> None:
    config = PretrainConfig(data="x", depth=6, heads=12, head="own")
    model, settings = sizes(config, 512)
    assert (model.layers, model.hidden_size, model.heads, model.head_size, model.tied_head) == (6, 384, 12, 32, False)
    assert settings["heads"].source == GIVEN
    with pytest.raises(ConfigError, match="one dial"):
        sizes(PretrainConfig(data="x", depth=6, params=10**6), 512)
    with pytest.raises(ConfigError, match="a width of 100 cannot be shared by 3 heads"):
        sizes(PretrainConfig(data="x", width=100, heads=3), 512)
    with pytest.raises(ConfigError, match="a width of 33 cannot be shared by 1 heads of an even number of channels"):
        sizes(PretrainConfig(data="x", width=33), 1000)
    with pytest.raises(ConfigError, match="2 heads cannot share 3 key/value heads evenly; give another --kv-heads"):
        sizes(PretrainConfig(data="x", width=64, kv_heads=3), 1000)


def test_a_dial_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(
        ConfigError, match=r"--params 1: the nearest model with a vocabulary of 4,096 has \d+,\d+ param"
    ):
        sizes(PretrainConfig(data="x", params=1), 4096)


@pytest.mark.parametrize(
    ("given", "source"),
    [(1, "1 as given, in whole windows of 128"), (1000, "1,000 as given, in whole windows of 128"), (256, GIVEN)],
)
def test_a_batch_is_whole_windows_and_says_so(given: int, source: str) -> None:
    batch = budget(PretrainConfig(data="x", batch_tokens=given), 10**6, 10**6, 128).batch_tokens
    assert (batch.value % 128, batch.source) == (0, source)


def test_a_base_goes_on_with_adamw_unless_told_otherwise() -> None:
    new, base = PretrainConfig(data="x"), PretrainConfig(data="x", model="base")
    assert [optimiser(config)[0] for config in (new, base)] == ["muon", "adamw"]
    assert optimiser(base.model_copy(update={"optimiser": "muon"})) == ("muon", GIVEN)


@pytest.mark.parametrize(("tokens", "context", "parameters"), [(3000, 256, 10**6), (20_000, 1024, 10**7)])
def test_no_window_is_read_twice(tokens: int, context: int, parameters: int, tmp_path: Path) -> None:
    shard = tmp_path / "0"
    shard.mkdir()
    for name, array in zip(ARRAYS, (np.zeros(tokens, np.uint16), np.array([tokens]), np.zeros((1, 2))), strict=True):
        np.save(shard / name, array)
    config = PretrainConfig(data="x")
    schedule = budget(config, parameters, tokens, context)
    plan, windows = pretraining.plan_windows(config, schedule, Stream([shard], ["x"]), context)
    steps = round(plan.epochs * math.ceil(len(windows) / plan.batch))
    assert steps * plan.batch <= len(windows) < 1.1 * steps * plan.batch


def test_tokens_follow_the_parameters_up_to_what_the_corpus_bears() -> None:
    config = PretrainConfig(data="x")
    rich, poor = (budget(config, 10**6, corpus, 128) for corpus in (10**9, 10**5))
    assert (rich.tokens.value, poor.tokens.value) == (20 * 10**6, 16 * 10**5)
    assert "2203.15556" in rich.tokens.source
    assert "2305.16264" in poor.tokens.source
    assert rich.batch_tokens.value % 128 == 0
    new, continued = (
        budget(config.model_copy(update={"model": base, "tokens": 10**6}), 10**6, 10**6, 128) for base in (None, "base")
    )
    assert continued.learning_rate.value == pytest.approx(new.learning_rate.value / 100, rel=0.05)


def test_counts_are_read_as_people_write_them(tmp_path: Path) -> None:
    assert [count(given) for given in ("10M", "1.5k", "300B", "7", 8)] == [10**7, 1500, 3 * 10**11, 7, 8]
    (tmp_path / "run.toml").write_text('data = "x"\nparams = "10M"\ntokens = 5\n', encoding="utf-8")
    config = read_config(PretrainConfig, tmp_path / "run.toml", {"tokens": "2k", "lr": None})
    assert (config.params, config.tokens, config.lr) == (10**7, 2000, None)
    with pytest.raises(ConfigError, match=r"no option 'depht'\. Did you mean 'depth'"):
        read_config(PretrainConfig, None, {"data": "x", "depht": 3})
    with pytest.raises(ConfigError, match="params='many'"):
        read_config(PretrainConfig, None, {"data": "x", "params": "many"})


def test_a_run_from_stdin_goes_on_without_it(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SMALL | {"out": tmp_path / "run", "quiet": True}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
    step = Trainer.step

    def stopping(trainer: Trainer) -> object:
        trainer.stop = trainer.progress.step == 2
        return step(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        assert graft.pretrain("-", **options).stopped == "stopped by you"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert graft.pretrain("-", resume=True, **options).stopped == "all steps done"
    with pytest.raises(ConfigError, match=r"is of another run: held_out 0.1 there, 0.2 here"):
        graft.pretrain("-", resume=True, **options | {"held_out": 0.2})
