"""One table, three places: flag beats environment beats file; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runner.config_file import merge
from runner.errors import UsageError
from runner.flags import BY_KEY, FLAGS, PANELS, parse_value
from runner.options import RunOptions


def test_every_run_option_has_a_flag_and_no_spelling_is_used_twice() -> None:
    fields = {field.name for field in msgspec.structs.fields(RunOptions)}
    assert fields <= {flag.key for flag in FLAGS}
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))
    assert {flag.panel for flag in FLAGS} == set(PANELS)


@pytest.mark.parametrize(
    "spelling",
    [
        "--model-path",
        "--model-name",
        "--model-config",
        "--http-port",
        "--http-host",
        "--context-length",
        "--kv-cache-block-size",
        "--tensor-parallel-size",
        "--base-gpu-id",
        "--num-nodes",
        "--node-rank",
        "--leader-addr",
        "--dist-init-addr",
        "--extra-engine-args",
        "--request-template",
        "-v",
        "-m",
        "-c",
        "--ctx-size",
        "--max-model-len",
        "--host",
        "--port",
        "--api-key",
        "-ngl",
        "-t",
        "--parallel",
        "--max-num-seqs",
        "--served-model-name",
        "--chat-template",
        "--seed",
        "--temp",
        "-s",
        "--system",
        "--config",
        "--dry-run",
    ],
)
def test_the_spellings_that_users_of_other_tools_type(spelling: str) -> None:
    assert any(spelling in flag.names for flag in FLAGS)


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("http_port = 1\nseed = 1\nthreads = 1\n")
    settings = merge(
        {"http_port": "3", "config": str(file)}, {"LLMRUN_HTTP_PORT": "2", "LLMRUN_SEED": "2", "OTHER": "x"}
    )
    assert (settings.values["http_port"], settings.values["seed"], settings.values["threads"]) == (3, 2, 1)
    assert settings.sources["http_port"] == "--http-port"
    assert settings.sources["seed"] == "LLMRUN_SEED"
    assert settings.sources["threads"] == f"threads in {file}"


def test_the_file_can_be_named_by_the_environment_and_takes_typed_values(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('in = "http"\nplain = true\ntemperature = 0.5\napi-key = ["a", "b"]\nlora = "x.gguf"\n')
    values = merge({}, {"LLMRUN_CONFIG": str(file)}).values
    assert values["in"] == "http"
    assert values["plain"] is True
    assert values["temperature"] == 0.5
    assert values["api_key"] == ("a", "b")
    assert values["lora"] == ("x.gguf",)


@pytest.mark.parametrize("raw", ["", " ", ",", ["a", ""]])
def test_an_empty_key_is_not_the_same_as_no_key(raw: object) -> None:
    with pytest.raises(UsageError, match=r"--api-key: got .* not empty"):
        parse_value(BY_KEY["api_key"], raw, "--api-key")


def test_an_empty_variable_counts_as_unset() -> None:
    assert "http_port" not in merge({}, {"LLMRUN_HTTP_PORT": ""}).values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("http_prot = 1", "unknown key 'http_prot'; did you mean http_port?"),
        ('config = "x"', "unknown key 'config'"),
        ("http_port = [", "not valid TOML"),
        ('http_port = "x"', "http_port in"),
        ("http_port = true", "got True; allowed: a whole number from 1 to 65,535"),
        ("plain = 1", "got 1; allowed: true or false"),
        ("system = 4", "got 4; allowed: text"),
        ("lora = [1]", r"got \[1\]"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        merge({"config": str(file)}, {})


def test_a_mistake_that_a_flag_hides_is_an_error_too() -> None:
    with pytest.raises(UsageError, match="LLMRUN_HTTP_PORT: got 'x'"):
        merge({"http_port": "1"}, {"LLMRUN_HTTP_PORT": "x"})


def test_a_missing_file_and_an_unknown_variable_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--config: cannot read"):
        merge({"config": str(tmp_path / "no.toml")}, {})
    with pytest.raises(UsageError, match="LLMRUN_HTTP_PROT; did you mean LLMRUN_HTTP_PORT"):
        merge({}, {"LLMRUN_HTTP_PROT": "1"})


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("http_port", "0"),
        ("http_port", "65536"),
        ("http_port", "1.5"),
        ("http_port", "1e3"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "-0.1"),
        ("top_p", "1.01"),
        ("gpu_layers", "-2"),
        ("plain", "maybe"),
        ("verbose", "3"),
        ("system", "a\0b"),
    ],
)
def test_values_out_of_range_name_flag_got_and_allowed(key: str, raw: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_value(BY_KEY[key], raw, f"--{key}")
    assert f"--{key}" in str(caught.value)
    assert repr(raw) in str(caught.value)
    assert "allowed: " in str(caught.value)


def test_lists_split_at_commas() -> None:
    assert parse_value(BY_KEY["api_key"], "a, b,", "x") == ("a", "b")
    assert parse_value(BY_KEY["api_key"], ["a", "b,c"], "x") == ("a", "b", "c")
