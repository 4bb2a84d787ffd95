"""The command line as its users meet it: exit codes, one line for an error, JSON for programs, other tools' names."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import graftwood
from command import Graft, Said
from graftwood.cli import guarded
from graftwood.errors import ConfigError
from graftwood.flags import ALIASES, assignments, normal


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


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_goes_on_where_nobody_reads_what_it_tells(stop: bool, folder: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "run"
    lines = [json.dumps({"prompt": f"say {n}", "completion": f" {n}"}) for n in range(12)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    words = ["--data", str(rows), "--model", str(folder), "--out", str(out), "--epochs", "200" if stop else "1"]
    words += ["--technique", "lora", "--rank", "2", "--tier", "pulse", "--batch", "1"]
    words += ["--evaluations", "9999", "--patience", "9999"]
    command = [sys.executable, "-m", "graftwood", "tune", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any("step 3/" in line for line in run.stderr)
        run.stderr.close()
        if stop:
            run.send_signal(signal.SIGINT)
    assert run.returncode == (130 if stop else 0)
    assert (out / "adapter").is_dir()
    chosen = json.loads((out / "report.json").read_text(encoding="utf-8"))["chosen"]
    assert (chosen["stopped"] == "stopped by you") == stop
