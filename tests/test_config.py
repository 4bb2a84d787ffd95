"""A run as a file: it comes back as it was, flags win over it, and every mistake in it is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwood.choose.budget import read_budget
from graftwood.config import PretrainConfig, RunConfig, read_config, read_toml, resolve, save_toml
from graftwood.errors import ConfigError
from graftwood.technique import TECHNIQUES

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
shares = st.floats(0, 1, exclude_max=True)
rates = st.floats(0, 100, exclude_min=True)
option = st.one_of(
    texts,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(texts, min_size=1).map(tuple),
)
configs = st.builds(
    RunConfig,
    data=texts,
    model=texts,
    out=st.none() | texts,
    technique=texts,
    valid=st.none() | texts,
    held_out=shares,
    lr=st.none() | rates,
    weight_decay=st.none() | st.floats(0, 100),
    batch=st.integers(1, 10**6),
    epochs=st.floats(0, 10**6, exclude_min=True),
    warmup=shares,
    seed=st.integers(0, 2**32 - 1),
    options=st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]{0,9}", fullmatch=True), option, max_size=3),
)


def same(one: RunConfig, other: RunConfig) -> bool:
    """Equal, and every option of the same type: 1, 1.0 and True are equal to Python."""
    kinds = [{key: type(value) for key, value in config.options.items()} for config in (one, other)]
    return one == other and kinds[0] == kinds[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(configs)
def test_a_saved_run_comes_back_as_it_was(tmp_path: Path, config: RunConfig) -> None:
    save_toml(config, tmp_path / "run.toml")
    again = resolve(tmp_path / "run.toml", {})
    assert same(again, config)
    save_toml(again, tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_bytes() == (tmp_path / "run.toml").read_bytes()


def test_a_file_says_all_that_was_decided(tmp_path: Path) -> None:
    held = {"kl": {"weight": 2.0}, "interpolate": {}}
    save_toml(RunConfig(data="rows.jsonl", options={"rank": 8}, anchors=held), tmp_path / "run.toml")
    values = read_toml(tmp_path / "run.toml")
    never = {name for name, info in RunConfig.model_fields.items() if info.default is None}
    assert set(values) == set(RunConfig.model_fields) - never
    assert values["options"] == {"rank": 8}
    assert values["anchors"] == held


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "a"\nlr = 1e-3\nbatch = 4\n[options]\nrank = 8\nalpha = 4.0\n')
    config = resolve(path, {"batch": 2, "lr": None, "epochs": None, "options": {"rank": 32, "targets": "q_proj"}})
    assert (config.data, config.lr, config.batch, config.epochs) == ("a", 1e-3, 2, RunConfig(data="a").epochs)
    assert config.options == {"rank": 32, "alpha": 4.0, "targets": "q_proj"}
    assert resolve(path, {}).options == {"rank": 8, "alpha": 4.0}


def test_flags_alone_are_enough() -> None:
    assert resolve(None, {"data": "rows.jsonl"}) == RunConfig(data="rows.jsonl")


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        (
            'data = "a"\nepoch = 3\n',
            {},
            ["run.toml: no option 'epoch'", "Did you mean 'epochs'", "Options: data, model"],
        ),
        ('data = "a"\nbach = 3\nsed = 1\n', {}, ["'bach'", "'batch'", "'sed'", "'seed'"]),
        ("batch = 3\n", {}, ["data is missing: give --data or the key data in a run file"]),
        (
            'data = "a"\nbatch = 0\n',
            {"lr": -1.0},
            ["batch=0", "greater than or equal to 1", "lr=-1.0", "greater than 0"],
        ),
        ('data = "a"\nlr = inf\n', {"epochs": math.inf}, ["lr=inf", "epochs=inf", "finite"]),
        ('data = "a"\nseed = 99999999999\n', {}, ["seed=99999999999", "less than 4294967296"]),
        ('data = "a"\nbatch = "many"\n', {}, ["batch='many'", "integer"]),
        ('data = "a"\noptions = 3\n', {}, ["options=3", "dictionary"]),
        ('data = "a"\nrank = 3\n', {}, ["no option 'rank'", "[options]"]),
    ],
)
def test_every_mistake_is_named(text: str, flags: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(write(tmp_path, text), flags)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("data = \n", "is not valid TOML: .*line 1"), ("a = 1\na = 2\n", "is not valid TOML")]
)
def test_a_file_that_does_not_parse_says_where(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"run\.toml {words}"):
        resolve(write(tmp_path, text), {})


def test_a_missing_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no run file .*none\.toml; without one, give the data with --data"):
        resolve(tmp_path / "none.toml", {})
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        resolve(tmp_path / "run.toml", {})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig(data="a").batch = 3  # type: ignore[misc]


@pytest.mark.parametrize(("given", "said"), [(0.95, "95%"), (95, "95%"), ("0.95", "95%"), ("95", "95%"), (1, "100%"),
    (0.975, "97.5%"), ("97.5%", "97.5%"), ("none", "none"), ("None", "none"),
    (0.005, "0.5%"), (0.29, "29%")])  # fmt: skip
@pytest.mark.parametrize("key", ["keep", "keep_worst"])
def test_a_share_is_a_number_or_a_percentage(key: str, given: object, said: str, tmp_path: Path) -> None:
    """From Python and from a run file; what is written of the run is the same."""
    written = f'"{given}"' if isinstance(given, str) else f"{given}"
    for config in (
        resolve(None, {"data": "a", key: given}),
        resolve(write(tmp_path, f'data = "a"\n{key} = {written}\n'), {}),
    ):
        assert getattr(config, key) == said
        assert said == "none" or read_budget(said) == read_budget(str(given))
        save_toml(config, tmp_path / "saved.toml")
        assert read_toml(tmp_path / "saved.toml")[key] == said


@pytest.mark.parametrize("given", [0, -0.5, 101, math.nan, math.inf, "much", "-1"])
def test_a_share_that_is_none_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(ConfigError, match="is no percentage between 0 and 100; write 95%, "):
        read_budget(resolve(None, {"data": "a", "keep": given}).keep or "")
    with pytest.raises(ConfigError, match="keep=True: input should be no truth value"):
        resolve(None, {"data": "a", "keep": True})


def test_what_is_no_utf8_is_refused_where_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data 'caf\\udce9.jsonl' is not UTF-8; rename it"):
        resolve(None, {"data": "caf\udce9.jsonl"})
    with pytest.raises(ConfigError, match=r"^options .* is not UTF-8"):
        resolve(None, {"data": "rows.jsonl", "options": {"targets": "r\udce9"}})


def test_paths_may_be_paths_and_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    given = {"data": Path("~/rows.jsonl"), "valid": "~/valid.jsonl", "out": Path("runs/x"), "model": "org/~name"}
    config = resolve(None, given)
    assert (config.data, config.valid) == ("/home/somebody/rows.jsonl", "/home/somebody/valid.jsonl")
    assert (config.out, config.model) == ("runs/x", "org/~name")


def test_true_is_no_number() -> None:
    for key, value in (("epochs", True), ("held_out", False), ("mix_cap", True), ("canaries", True), ("lr", True)):
        with pytest.raises(ConfigError, match=f"{key}={value}: input should be no truth value"):
            resolve(None, {"data": "rows.jsonl", key: value})
    with pytest.raises(ConfigError, match="lora: rank=True: input should be no truth value"):
        TECHNIQUES.get("lora").parse({"rank": True})
    assert resolve(None, {"data": "rows.jsonl", "search": True}).search
    assert TECHNIQUES.get("lora").parse({"rslora": True})


@pytest.mark.parametrize(("given", "meant"), [("learning_rate", "lr"), ("epoch", "epochs"), ("lora_r", "rank")])
def test_an_unknown_option_names_the_one_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"no option '{given}'. Did you mean '{meant}'"):
        TECHNIQUES.get("lora").parse({given: 1})
    with pytest.raises(ConfigError, match=f"no option '{given}'. Did you mean '{meant}'"):
        resolve(None, {"data": "rows.jsonl", given: 1})


def test_a_separator_may_be_white_space_and_not_nothing() -> None:
    assert read_config(PretrainConfig, None, {"data": "text", "separator": "\n\n\n"}).separator == "\n\n\n"
    with pytest.raises(ConfigError, match="separator is empty"):
        read_config(PretrainConfig, None, {"data": "text", "separator": ""})
