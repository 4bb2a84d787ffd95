"""The command line as its users meet it: exit codes, one line for an error, JSON for programs, other tools' names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import graftwood
from conftest import CPU
from graftwood.base import open_base
from graftwood.choose.relation import learn
from graftwood.cli import app, guarded
from graftwood.data.encode import encode_rows
from graftwood.data.rows import rows_from
from graftwood.errors import ConfigError
from graftwood.flags import ALIASES, assignments, normal, spelled, unescaped
from graftwood.generate.engine import Engine
from graftwood.run import Model, load
from graftwood.samples import remembered
from graftwood.train.below import rows_kept
from tiny import adapter, model_folder


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, its data and its messages."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's error; a traceback or a second line would fail here."""
        (line,) = self.err.splitlines()
        assert line.startswith("graft: ")
        return line.removeprefix("graft: ")


Graft = Callable[..., Said]


@pytest.fixture
def graft(capsys: pytest.CaptureFixture[str]) -> Graft:
    """`graft("show", "runs/x")`: the command in this process, as `main` runs it."""

    def call(*words: object) -> Said:
        capsys.readouterr()
        code = guarded(lambda: app(spelled([str(word) for word in words]), standalone_mode=False))
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


def json_lines(said: Said) -> list[dict[str, Any]]:
    """A command's data, which ends each value with a line feed and nothing else."""
    return [json.loads(line) for line in said.out.split("\n")[:-1]]


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    """A whole model folder."""
    return model_folder(tmp_path / "base", tokenizer_files)


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A small data file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one", "completion": "two"}\n', encoding="utf-8")
    return path


def test_version(graft: Graft) -> None:
    assert graft("--version") == Said(0, f"{graftwood.__version__}\n", "")


def test_help_names_every_verb(graft: Graft) -> None:
    said = graft("--help")
    assert said.code == 0
    for verb in ("tune", "generate", "chat", "export", "merge", "show", "models", "cache", "techniques"):
        assert f"  {verb} " in said.out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("tune", "--learning-rat", "1"), "--learning-rat"),
        (("tune", "--lr", "fast"), "--lr"),
        (("merge", "somewhere"), "--out"),
        (("tuna",), "tuna"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(graft: Graft, words: tuple[str, ...], hint: str) -> None:
    said = graft(*words)
    assert (said.code, said.out) == (2, "")
    assert hint in said.error


def test_no_data(graft: Graft) -> None:
    said = graft("tune")
    assert said.code == 2
    assert "data is missing" in said.error
    assert "--data" in said.error


def test_bounds_are_said_with_the_value(graft: Graft, rows: Path) -> None:
    said = graft("tune", "--data", rows, "--batch", 0, "--lr", -1)
    assert said.code == 2
    assert "batch=0" in said.error
    assert "lr=-1" in said.error  # all of them at once


def test_a_run_file_that_is_not_there(graft: Graft, tmp_path: Path) -> None:
    said = graft("tune", tmp_path / "run.toml")
    assert said.code == 2
    assert f"there is no run file {tmp_path / 'run.toml'}" in said.error


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("data = ", "not valid TOML"),
        ('data = "rows.jsonl"\nepoch = 2', "Did you mean 'epochs'"),
        ('data = "rows.jsonl"\nbatch = "many"', "batch='many'"),
        ('data = "rows.jsonl"\noptions = 3', "options"),
    ],
)
def test_a_bad_run_file_names_itself_and_the_key(graft: Graft, tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    said = graft("tune", path)
    assert said.code == 2
    assert str(path) in said.error
    assert hint in said.error


def test_an_unknown_technique_names_its_neighbours(graft: Graft, rows: Path, tiny_hf_folder: Path) -> None:
    said = graft("tune", "--data", rows, "--model", tiny_hf_folder, "--held-out", 0, "--technique", "lroa")
    assert said.code == 2
    assert "unknown technique 'lroa'. Did you mean 'lora'" in said.error


def test_an_option_the_technique_lacks_names_those_it_has(graft: Graft, rows: Path, tiny_hf_folder: Path) -> None:
    said = graft(
        "tune", "--data", rows, "--model", tiny_hf_folder, "--held-out", 0, "--keep", "none", "--set", "rnak=4"
    )
    assert said.code == 2
    assert "Did you mean 'rank'" in said.error


def test_a_model_that_is_not_there(graft: Graft, tmp_path: Path) -> None:
    said = graft("generate", "--model", tmp_path / "nowhere", "hello")
    assert said.code == 2
    assert "no model" in said.error
    assert "smollm2-135m" in said.error


def test_other_tools_names_are_understood() -> None:
    assert normal("--learning_rate") == "--lr"
    assert normal("--learning_rate=1e-4") == "--lr=1e-4"
    assert normal("--lora-r") == "--rank"
    assert normal("--max_seq_length=8") == "--max-length=8"
    assert normal("--token_budget") == "--token-budget"
    # Only names change: values and words keep their underscores.
    assert normal("q_proj") == "q_proj"
    assert normal("--targets=q_proj") == "--targets=q_proj"
    assert not set(ALIASES) & set(ALIASES.values())


def test_other_tools_names_reach_the_run(graft: Graft, rows: Path, tiny_hf_folder: Path) -> None:
    more = ("--data", rows, "--model", tiny_hf_folder, "--held-out", 0, "--keep", "none")
    assert "lr=-1" in graft("tune", *more, "--learning_rate", -1).error
    assert "rank=0" in graft("tune", *more, "--lora-r", 0).error
    assert "'nothing'" in graft("tune", *more, "--target_modules=nothing").error


def test_all_that_is_wrong_with_a_run_is_said_at_once(graft: Graft, rows: Path, tiny_hf_folder: Path) -> None:
    """Rows, options, and what does not fit the model, of which no weight is there to be loaded."""
    (tiny_hf_folder / "model.safetensors").unlink()
    options = ("--rank", 500, "--targets", "q_prj,v_proj", "--set", 'rank_pattern={"o_proj": 4}')
    said = graft("tune", "--data", rows, "--model", tiny_hf_folder, *options)
    assert said.code == 2
    for part in (
        "4 problems:",
        "held",
        "'q_prj'. Did you mean 'q_proj'",
        "rank 500 is above",
        "targeted linear with 'o_proj'",
    ):
        assert part in said.err
    said = graft("tune", "--data", rows, "--model", tiny_hf_folder, "--technique", "full", "--base-precision", "int8")
    assert "full moves the base's own weights, which int8 cannot hold" in said.err


def test_wrong_options_hide_nothing_else_that_is_wrong(graft: Graft, rows: Path, tiny_hf_folder: Path) -> None:
    (tiny_hf_folder / "model.safetensors").unlink()
    options = ("--technique", "lora", "--set", "start=pisa", "--targets", "q_prj", "--held-out", 0.1)
    file = rows.parent / "run.toml"
    file.write_text('[anchors.kl]\nweight = -1\n[anchors.replay]\nfile = "nowhere.jsonl"\n', encoding="utf-8")
    said = graft("tune", file, "--data", rows, "--model", tiny_hf_folder, *options)
    assert said.code == 2
    for part in ("start='pisa': input should be 'zero' or 'pissa'", "'q_prj'. Did you mean 'q_proj'", "kl: weight=-1"):
        assert part in said.err
    assert "replay: there is no file nowhere.jsonl" in said.err
    said = graft("tune", file, "--data", rows, "--model", tiny_hf_folder, "--technique", "lroa")
    for part in ("unknown technique 'lroa'. Did you mean 'lora'", "kl: weight=-1"):
        assert part in said.err
    assert (
        "base_precision='int4': input should be 'full', 'int8' or 'q4'"
        in graft("tune", "--data", rows, "--base-precision", "int4").err
    )


def test_set_reads_json_where_it_is_json() -> None:
    assert assignments(["rank=4", "rslora=true", "targets=q_proj", "x=[1, 2]"]) == {
        "rank": 4,
        "rslora": True,
        "targets": "q_proj",
        "x": [1, 2],
    }
    with pytest.raises(ConfigError, match="'rank' is not key=value"):
        assignments(["rank"])


def test_show_of_a_foreign_folder(graft: Graft, tmp_path: Path) -> None:
    said = graft("show", tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"no report in {tmp_path}" in said.error
    (tmp_path / "report.json").write_text('{"version": 99}', encoding="utf-8")
    assert "not a report card of this version" in graft("show", tmp_path).error


@pytest.mark.parametrize("flag", ["--data", "--valid", "--skills", "--model"])
def test_rows_in_place_of_a_path_are_refused_in_one_line(flag: str, graft: Graft, rows: Path, tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a word " * 60, "completion": "another"})
    said = graft("tune", "--out", tmp_path / "run", *(() if flag == "--data" else ("--data", rows)), flag, row)
    assert said.code == 2
    assert said.error.startswith(f"{row[:60]}... is too long for the name of a file; rows and questions are read from")


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
    f"kept-against-drift/{BASE}.json": "",
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


def test_cache_knows_what_a_run_leaves(graft: Graft, home: Path, tiny_hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"context": "the user", "word": "said"}\n', encoding="utf-8")
    assert graft("eval", tiny_hf_folder, "--tasks", tmp_path / "words.jsonl").code == 0
    rows, base = [{"prompt": f"say {n}", "completion": f" {n}"} for n in range(6)], open_base(str(tiny_hf_folder), CPU)
    remembered(base, Engine(base.decoder, base.tokenizer.eos, base.tokenizer), 2, 0, 16)
    rows_kept(base, encode_rows(base.encoder(), rows_from(rows).rows), 1)
    learn(base.fingerprint, ((0.1, 0.9),))
    listed = [entry["name"].split("/")[0] for entry in json.loads(graft("cache", "--json").out)["entries"]]
    assert sorted(listed) == ["activations", "base-scores", "kept-against-drift", "samples"]


def test_techniques_lists_options_and_sources(graft: Graft) -> None:
    rows = {row["name"]: row for row in json.loads(graft("techniques", "--json").out)}
    assert rows["lora"]["options"]["rank"] == 16
    assert rows["full"]["options"] == {}
    assert all(row["source"] and row["learning_rate"] > 0 for row in rows.values())
    for row in rows.values():
        assert all(
            row[key] for key in ("title", "formula", "trains", "saves", "costs", "merges", "learning_rate_reason")
        )
    assert "rank=16" in graft("techniques").out


def test_export_refuses_a_folder_that_is_in_use(graft: Graft, tmp_path: Path, tiny_hf_folder: Path) -> None:
    said = graft("export", tiny_hf_folder, "--out", tmp_path)
    assert said.code == 2
    assert "is not empty" in said.error


def test_generate_reads_prompts_and_writes_json_lines(graft: Graft, tmp_path: Path, tiny_hf_folder: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the"}\n{"messages": [{"role": "user", "content": "that"}]}\n', encoding="utf-8")
    said = graft("generate", "--model", tiny_hf_folder, "--file", prompts, "-n", 3, "--json")
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["the", [{"role": "user", "content": "that"}]]
    assert all(answer["tokens"] <= 3 and answer["finish"] in ("stop", "length") for answer in answers)
    prompts.write_text("{}\n", encoding="utf-8")
    assert f"{prompts}:1: the row asks nothing" in graft("generate", "--model", tiny_hf_folder, "--file", prompts).err


def test_a_row_of_messages_is_answered_as_a_conversation(
    graft: Graft, model: Model, folder: Path, tmp_path: Path
) -> None:
    """Every shape up to its last answer, through the chat template; a text as it stands, whatever else breaks lines."""
    system, user = {"role": "system", "content": "the"}, {"role": "user", "content": "is\u2028here"}
    answer = {"role": "assistant", "content": "not asked"}
    asked = [
        {"messages": [system, user]},
        {"messages": [system, user, answer]},
        {"prompt": [system, user]},
        {"prompt": [system, user], "completion": [answer]},
        {"conversations": [{"from": "system", "value": "the"}, {"from": "human", "value": "is\u2028here"}]},
        {"instruction": "is\u2028here", "system": "the"},
    ]
    file = tmp_path / "rows.jsonl"
    rows = [*asked, {"prompt": "is\u2028here"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    said = json_lines(graft("generate", "--model", folder, "-f", file, "-n", 6, "--json"))
    answered, continued = model.chat([system, user], max_tokens=6), model.generate("is\u2028here", max_tokens=6)
    assert answered != continued, "a test of what is asked needs two answers"
    assert [row["text"] for row in said] == [answered] * len(asked) + [continued]
    assert [row["prompt"] for row in said] == [[system, user]] * len(asked) + ["is\u2028here"]


def test_rows_that_ask_nothing_are_refused_by_line(graft: Graft, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    bad = ({"prompt": None}, {"prompt": 3}, {"prompt": [{"role": "me"}]}, {"text": "a"}, {"prompt": ""})
    file.write_text("\n\n".join(map(json.dumps, bad)), encoding="utf-8")
    refused = graft("generate", "--model", folder, "-f", file).err
    for part in (
        "1: the row asks nothing",
        "3: prompt is a number; it must",
        "5: prompt[0] has role 'me'",
        "7: text is",
    ):
        assert f"{file}:{part}" in refused
    assert f"{file}:9: prompt is empty" in refused


def test_a_text_file_holds_a_prompt_a_line(graft: Graft, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes(b"the user\x0csaid\r\n\nis here")
    said = json_lines(graft("generate", "--model", folder, "-f", text, "-n", 1, "--json"))
    assert [row["prompt"] for row in said] == ["the user\x0csaid", "is here"]
    assert "give one of them" in graft("generate", "--model", folder, "-f", text, "the").error


def test_a_base_without_a_template_says_how_messages_are_worded(graft: Graft, folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert graft("generate", "--model", folder, "-n", 1, "the").err == ""
    assert "base has no chat template" in graft("generate", "--model", folder, "-n", 1, "--chat", "the").err


def test_a_stop_may_be_white_space(graft: Graft, model: Model, folder: Path) -> None:
    said = model.generate("the user", max_tokens=40)
    assert " " in said.strip(), "a test of stopping needs something to stop at"
    stopped = graft("generate", "--model", folder, "-n", 40, "--stop", " ", "the user")
    assert stopped.out == said.partition(" ")[0] + "\n"
    assert (unescaped("\\n\\n"), unescaped("a\\tb")) == ("\n\n", "a\tb")
    assert "--stop is empty" in graft("generate", "--stop", "", "the").error


def test_what_stands_after_two_dashes_is_no_flag() -> None:
    words = ["generate", "--max_tokens", "3", "--", "--my_snake_case=3 says", "--"]
    assert spelled(words) == ["generate", "--max-tokens", "3", "--", "--my_snake_case=3 says", "--"]


@pytest.mark.parametrize("words", [("generate", b"caf\xe9"), ("generate",), ("chat", "--system", b"caf\xe9")])
def test_bytes_that_are_no_text_are_refused(words: tuple[str | bytes, ...], folder: Path) -> None:
    command = [sys.executable, "-m", "graftwood", words[0], "--model", folder, *words[1:]]
    done = subprocess.run(command, input=b"caf\xe9", capture_output=True, check=False)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert said.endswith(b" is not UTF-8 at character 4; write it as UTF-8")


def test_a_conversation_outlives_a_message_that_cannot_be_answered(
    graft: Graft, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the user", "the " * 200, "caf\udce9", "is here"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    said = graft("chat", "--model", folder, "-t", 0, "-n", 4)
    assert said.code == 0
    assert said.err.count("the message is dropped, /new starts over") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{lines[0]}\n{lines[3]}\n"))
    assert graft("chat", "--model", folder, "-t", 0, "-n", 4).out == said.out


def test_ctrl_c_is_said(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed(io.StringIO):
        def isatty(self) -> bool:
            return False

        def read(self, size: int | None = -1) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Pressed())
    assert graft("generate") == Said(130, "", "graft: stopped\n")


def test_ctrl_c_is_said_while_the_command_is_still_being_read() -> None:
    pressed = """
import sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
from graftwood.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", pressed, "models"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "graft: stopped\n")


def test_a_bug_keeps_its_traceback() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(broken)


def test_the_program_itself() -> None:
    """Through the entry point and a process of its own: what `pip install` puts on the path."""
    command = [sys.executable, "-c", "from graftwood.__main__ import main; main()", "show", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "graft: no report in nowhere: report.json is missing. Give the folder of a finished run."
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune", "--data", ""), "--data is empty; give it a value"),
        (("show", " "), "run is empty"),
        (("tune", "--rank", "4", "--set", "rank=8"), "rank is given by --set and by its own flag"),
        (("tune", "--set", "start=zero", "--set", "start=pissa"), "start is given twice"),
        (("tune", "--set", "=3"), "'=3' is not key=value"),
        (("tune", "--dry-run", "--resume"), "leave one out"),
        (("tune", "--data", "x", "--bach", "3"), "graft tune --help"),
        (("tokenizer", "trian"), "Did you mean 'train'? (graft tokenizer --help"),
        (("generate", "--seed", "-1", "hi"), "--seed"),
        (("eval", "tiny", "--seed", "-1"), "--seed"),
        (("eval", "tiny", "-t", "-1"), "temperature -1 is not 0 (greedy) or more"),
        (("eval", "tiny", "-t", "nan"), "temperature nan is not 0 (greedy) or more"),
        (("generate", "--model", "~nosuch/x", "hi"), "no model '~nosuch/x'"),
        (("generate", "--model", "x" * 5000, "hi"), "is too long for the name of a file"),
        (("show", "x" * 300), "is too long for the name of a file"),
        (("generate", "-n", "0", "hi"), "max_tokens=0 is not 1 or more"),  # the default base is not fetched for it
        (("tune", "."), "cannot read the run file .: Is a directory"),
        (("tune", __file__), "a run file is TOML, data are given with --data"),
        (("tune", "--data", "nowhere.jsonl"), "no such file or folder: nowhere.jsonl"),
        (("tune", "--data", "x", "--epochs", "1e300"), "epochs=1e+300: input should be less than or equal to 1000000"),
        (("tune", "--data", "x", "--lr", "1e30"), "lr=1e+30: input should be less than or equal to 100"),
        (("tune", "--data", "x", "--alpha", "nan"), "options.alpha=nan: input should be a finite number"),
    ],
)
def test_nonsense_is_refused_before_anything_is_fetched(
    graft: Graft, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    done = graft(*words)
    assert (done.code, done.out) == (2, "")
    assert said in done.error
    assert "pip" not in done.error


@pytest.mark.parametrize("verb", ["export", "merge", "tokenizer train", "prepare"])
def test_a_file_is_no_folder_to_write(
    graft: Graft, rows: Path, tmp_path: Path, tiny_hf_folder: Path, verb: str
) -> None:
    given = rows if verb in ("tokenizer train", "prepare") else tiny_hf_folder
    said = graft(*verb.split(), given, "--out", rows, *(("--model", tiny_hf_folder) if verb == "merge" else ()))
    assert said.code == 2
    assert said.err.endswith(f"graft: {rows} is a file; give a new folder with --out\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b"caf\xe9", "is not UTF-8 at byte 4"),
        (None, "cannot read the prompt file"),
    ],
)
def test_prompt_files_that_are_none(graft: Graft, tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    done = graft("generate", "--file", path)
    assert done.code == 2
    assert said in done.error


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


def test_help_cuts_no_sentence(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "..." not in graft("--help").out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("techniques | head -1", 0, ""),
        ("techniques | true", 0, ""),
        ("tune --help | true", 0, ""),
        ("techniques > /dev/full", 2, "graft: cannot write: No space left on device"),
        ("techniques >&-", 0, ""),
        ("generate <&-", 2, "graft: no prompt: stdin is empty; give one as an argument, with --file, or on stdin"),
    ],
)
def test_streams_that_are_closed_or_full(shell: str, code: int, said: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m graftwood {shell}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, said)
