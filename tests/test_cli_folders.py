"""What the command line reads, writes and deletes: the cache, exports, merges."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from command import Graft, Said
from conftest import CPU
from graftwood.base import open_base
from graftwood.choose.relation import learn
from graftwood.data.encode import encode_rows
from graftwood.data.rows import rows_from
from graftwood.generate.engine import Engine
from graftwood.run import Model, load
from graftwood.samples import remembered
from graftwood.train.below import rows_kept
from tiny import adapter


def test_models_and_cache_of_an_empty_home(graft: Graft, home: Path) -> None:
    assert "smollm2-135m" in graft("models").out
    known = json.loads(graft("models", "--json").out)
    assert [model["name"] for model in known["known"]] == ["smollm2-135m"]
    assert known["cached"] == []
    assert graft("cache") == Said(0, "", f"cache folder {home}\n")
    assert json.loads(graft("cache", "--json").out) == {"home": str(home), "entries": []}
    assert graft("cache", "--clean").err.endswith("deleted 0 entries\n")


BASE = "0123456789abcdef"
CACHED = {  # every shelf as it is written
    f"models/tiny-{BASE}": "graftwood.json",
    "sources/pypi/made-up==1.0": "m.gguf",
    "sources/huggingface/models--org--name": "snapshots/1/model.safetensors",
    f"samples/{BASE}-float32-v2-48-0": "samples.safetensors",
    f"activations/{BASE}-float32-int8-18-{BASE}": "states.bin",
    f"base-scores/{BASE}-float32": f"piqa-{BASE}.json",
    f"kept-against-drift/{BASE}-{BASE}.json": "",
    f"kept-against-drift/{BASE}.json": "",
    f"fingerprints/{2 * BASE}": "",
}
FOREIGN = (
    "models/llama/model.safetensors",
    f"models/mine-{BASE}/model.safetensors",
    "models/notes.txt",
    "samples/holidays/one.jpg",
    f"samples/{BASE}-of-mine/one.wav",
    "activations/readme",
    "base-scores/match.json",
    "kept-against-drift/mine.json",
    "sources/pypi/a==b/wheel.whl",
    "sources/huggingface/models--org--other/snapshots/1/model.safetensors",
)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")


def test_cache_deletes_what_is_named_and_nothing_else(graft: Graft, home: Path) -> None:
    for name in ("one", "two"):
        put(home / "models" / f"{name}-{BASE}" / "graftwood.json")
    listed = json.loads(graft("cache", "--json").out)["entries"]
    assert [(entry["name"], entry["bytes"]) for entry in listed] == [
        (f"models/one-{BASE}", 5),
        (f"models/two-{BASE}", 5),
    ]
    assert "Did you mean" in graft("cache", f"models/won-{BASE}", "--clean").error
    assert graft("cache", f"models/one-{BASE}", "--clean").code == 0
    assert [path.name for path in (home / "models").iterdir()] == [f"two-{BASE}"]


def test_cache_deletes_every_kind_of_entry_and_leaves_what_others_put_there(graft: Graft, home: Path) -> None:
    for name, inner in CACHED.items():
        put(home / name / inner)
    put(home / "sources" / "huggingface" / "org--name.path")
    (home / "sources/huggingface/models--org--name/snapshots/1/link").symlink_to("model.safetensors")
    for name in FOREIGN:
        put(home / name)
    listed = json.loads(graft("cache", "--json").out)["entries"]
    assert {entry["name"]: entry["bytes"] for entry in listed} == dict.fromkeys(CACHED, 5)
    said = graft("cache", "--clean")
    assert said.code == 0
    assert said.err.endswith(f"deleted {len(CACHED)} entries\n")
    assert {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()} == set(FOREIGN)


def test_cache_deletes_what_a_kill_left_unfinished(graft: Graft, home: Path) -> None:
    left, begun, foreign = (f".{name}.ab12cd34.part" for name in (f"one-{BASE}", f"two-{BASE}", "theirs"))
    for name in (left, begun, foreign):
        put(home / "models" / name / "model.safetensors")
    for path in ((home / "models" / name) for name in (left, foreign)):
        for old in (path, path / "model.safetensors"):
            os.utime(old, (0, 0))
    assert [entry["name"] for entry in json.loads(graft("cache", "--json").out)["entries"]] == [f"models/{left}"]
    assert graft("cache", "--clean").code == 0
    assert {path.name for path in (home / "models").iterdir()} == {begun, foreign}


def test_cache_knows_what_a_run_leaves(graft: Graft, home: Path, tiny_hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"context": "the user", "word": "said"}\n', encoding="utf-8")
    assert graft("eval", tiny_hf_folder, "--tasks", tmp_path / "words.jsonl").code == 0
    rows, base = [{"prompt": f"say {n}", "completion": f" {n}"} for n in range(6)], open_base(str(tiny_hf_folder), CPU)
    remembered(base, Engine(base.decoder, base.tokenizer.eos, base.tokenizer), 2, 0, 16)
    rows_kept(base, encode_rows(base.encoder(), rows_from(rows).rows), 1)
    learn(base.fingerprint, "a" * 64, ((0.1, 0.9, 0.95),))
    listed = [entry["name"].split("/")[0] for entry in json.loads(graft("cache", "--json").out)["entries"]]
    assert sorted(listed) == ["activations", "base-scores", "fingerprints", "kept-against-drift", "samples"]


def test_export_refuses_a_folder_that_is_in_use(graft: Graft, tmp_path: Path, tiny_hf_folder: Path) -> None:
    said = graft("export", tiny_hf_folder, "--out", tmp_path)
    assert said.code == 2
    assert "is not empty" in said.error


@pytest.mark.parametrize("verb", ["export", "merge", "tokenizer train", "prepare"])
def test_a_file_is_no_folder_to_write(
    graft: Graft, rows: Path, tmp_path: Path, tiny_hf_folder: Path, verb: str
) -> None:
    given = rows if verb in ("tokenizer train", "prepare") else tiny_hf_folder
    said = graft(*verb.split(), given, "--out", rows, *(("--model", tiny_hf_folder) if verb == "merge" else ()))
    assert said.code == 2
    assert said.err.endswith(f"graft: {rows} is a file; give a new folder with --out\n")


@pytest.mark.parametrize(
    ("config", "said"), [('{"a":', "is not valid JSON"), ("[1]", "not an object"), ("{}", "of which base it is")]
)
def test_merge_of_a_damaged_adapter(graft: Graft, tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    done = graft("merge", tmp_path, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.error
    assert str(tmp_path / "adapter_config.json") in done.error


def test_a_run_in_the_home_folder_is_one(
    graft: Graft, model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(model.base, "lora", tmp_path / "run" / "adapter")
    (tmp_path / "run" / "run.toml").write_text(f'model = "{folder}"', encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    said = [graft("generate", "--model", given, "-n", 6, "the").out for given in ("~/run", tmp_path / "run")]
    said.append(graft("generate", "--model", "~/base", "--adapter", "~/run", "-n", 6, "the").out)
    assert said == [load(folder, made).generate("the", max_tokens=6) + "\n"] * 3


def test_an_export_fills_the_folder_it_is_called_in(
    graft: Graft, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert graft("export", folder, "--out", ".").code == 0
    assert load(tmp_path / "here").generate("the", max_tokens=6) == load(folder).generate("the", max_tokens=6)


def test_merge_finds_the_base_by_its_source(graft: Graft, model: Model, folder: Path, tmp_path: Path) -> None:
    """PEFT's file of an adapter may name a folder of the cache, which is gone once that is cleaned."""
    made = adapter(model.base, "lora", tmp_path / "adapter")
    config = json.loads((made / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (made / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    said = graft("merge", made, "--out", tmp_path / "out", "--json")
    assert json.loads(said.out).keys() == {"folder", "logit_difference"}
    assert load(tmp_path / "out").generate("the", max_tokens=6) == load(folder, made).generate("the", max_tokens=6)
    notes = json.loads((made / "graftwood.json").read_text(encoding="utf-8"))
    del notes["base_source"]
    (made / "graftwood.json").write_text(json.dumps(notes), encoding="utf-8")
    said = graft("merge", made, "--out", tmp_path / "two")
    assert said.error.endswith(f"{made} is of the base {tmp_path / 'gone'}, which is not there; name it with --model")
    assert graft("merge", made, "--model", folder, "--out", tmp_path / "two").code == 0
