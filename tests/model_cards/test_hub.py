"""Downloads against a Hub on loopback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_cards.errors import DownloadError, ModelNotFound
from model_cards.hub import HubSettings, fetch_model, list_cached, remove_cached
from model_cards.hub_names import HubName, choose_files, parse_hub_name, quant_of
from tests.model_cards.fake_hub import FakeHub

BIG = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    server = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the library reads it at import
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield server
    server.close()


def names(*paths: str) -> dict[str, bytes]:
    return {path: path.encode() for path in paths}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo:q4_k_m", HubName("org/repo", "q4_k_m")),
        ("org/repo@q4_k_m", HubName("org/repo", "q4_k_m")),
        ("org/repo@v1.0", HubName("org/repo", None, None, "v1.0")),
        ("org/repo:sub/x.gguf", HubName("org/repo", None, "sub/x.gguf")),
        ("hf://org/repo", HubName("org/repo")),
        ("huggingface://org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("hf.co/org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("hf://gpt2", HubName("gpt2")),
        ("https://huggingface.co/org/repo", HubName("org/repo")),
        ("https://huggingface.co/org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("https://huggingface.co/org/repo/blob/main/a%20b.gguf", HubName("org/repo", None, "a b.gguf")),
        ("https://huggingface.co/org/repo/resolve/v2/d/x.gguf", HubName("org/repo", None, "d/x.gguf", "v2")),
        ("https://huggingface.co/org/repo/tree/v2", HubName("org/repo", None, None, "v2")),
        ("gpt2", None),
        ("a b/c", None),
    ],
)
def test_names(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize("text", ["https://example.com/org/repo", "hf://a/b/c", "hf://", "https://huggingface.co/org"])
def test_names_that_cannot_be(text: str) -> None:
    with pytest.raises(ModelNotFound):
        parse_hub_name(text)


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("model.q4_k_m.gguf", "Q4_K_M"),
        ("UD-Q4_K_XL/m-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("Q2_K/model-00001-of-00003.gguf", "Q2_K"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.gguf", None),
    ],
)
def test_quant_of_a_file(file: str, quant: str | None) -> None:
    assert quant_of(file) == quant


class TestChoice:
    files = dict.fromkeys(
        ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "mmproj-F16.gguf"], 1
    )

    def choose(self, text: str, files: dict[str, int] | None = None) -> list[str]:
        name = parse_hub_name(text)
        assert name is not None
        return choose_files(name, self.files if files is None else files)

    def test_default_is_q4_k_m(self) -> None:
        assert self.choose("o/r") == ["m-Q4_K_M.gguf"]

    def test_else_the_first(self) -> None:
        assert self.choose("o/r", {"m-Q8_0.gguf": 1, "m-Q5_K_M.gguf": 1}) == ["m-Q5_K_M.gguf"]

    def test_any_case(self) -> None:
        assert self.choose("o/r:q8_0") == ["m-Q8_0.gguf"]

    def test_all_shards(self) -> None:
        assert self.choose("o/r:f16") == ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]

    def test_unknown_quant_lists_what_there_is(self) -> None:
        with pytest.raises(ModelNotFound, match=r"no quantization Q3_K; there is: F16, Q4_K_M, Q8_0"):
            self.choose("o/r:Q3_K")

    def test_a_missing_shard(self) -> None:
        with pytest.raises(ModelNotFound, match="1 of 2 shards are missing"):
            self.choose("o/r:f16", {"m-F16-00001-of-00002.gguf": 1})

    def test_safetensors_win_unless_a_quant_is_named(self) -> None:
        files = dict.fromkeys(["config.json", "model.safetensors", "m-Q4_K_M.gguf"], 1)
        assert self.choose("o/r", files) == ["config.json", "model.safetensors"]
        assert self.choose("o/r:Q4_K_M", files) == ["m-Q4_K_M.gguf"]

    def test_only_what_is_needed(self) -> None:
        wanted = ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja",
                  "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                  "model.safetensors.index.json"]  # fmt: skip
        other = ["README.md", "LICENSE", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "x.png",
                 "pytorch_model.bin.index.json", "original/params.json", ".gitattributes", "tf_model.h5"]  # fmt: skip
        assert sorted(self.choose("o/r", dict.fromkeys(wanted + other, 1))) == sorted(wanted)

    def test_nothing_to_run(self) -> None:
        with pytest.raises(ModelNotFound, match="no model that can be run"):
            self.choose("o/r", {"README.md": 1})


def test_download_of_a_quant(hub: FakeHub) -> None:
    hub.repos["org/m"] = {**names("m-Q4_K_M.gguf", "README.md"), "m-Q8_0.gguf": BIG}
    seen: list[tuple[str, int, int]] = []
    path = fetch_model(HubName("org/m", "q8_0"), progress=lambda *step: seen.append(step))
    assert path.name == "m-Q8_0.gguf" and path.read_bytes() == BIG
    assert hub.downloads() == [("m-Q8_0.gguf", None)]
    assert seen[-1] == ("m-Q8_0.gguf", len(BIG), len(BIG))


def test_a_second_fetch_downloads_nothing(hub: FakeHub) -> None:
    hub.repos["org/m"] = names("config.json", "model.safetensors", "additional_chat_templates/rag.jinja")
    folder = fetch_model(HubName("org/m"))
    assert (folder / "additional_chat_templates/rag.jinja").is_file()
    num_downloads = len(hub.downloads())
    assert num_downloads == 3
    assert fetch_model(HubName("org/m")) == folder
    assert len(hub.downloads()) == num_downloads


def test_an_interrupted_download_resumes(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)  # ten megabytes otherwise
    hub.repos["org/m"] = {"m-Q8_0.gguf": BIG}
    hub.break_after = 300_000
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch_model(HubName("org/m"))
    hub.status = None
    seen: list[tuple[str, int, int]] = []
    path = fetch_model(HubName("org/m"), progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BIG
    resumed = hub.downloads()[-1][1]
    assert resumed is not None and resumed.startswith("bytes=") and resumed != "bytes=0-"
    assert seen[0][1] == int(resumed[6:-1]) > 0, "progress begins where the first try ended"


def test_a_resumed_file_is_checked(hub: FakeHub) -> None:
    """What lies in the cache may be the beginning of something else."""
    hub.repos["org/m"] = {"m-Q8_0.gguf": BIG}
    path = fetch_model(HubName("org/m"))
    blob = path.resolve()
    partial = blob.with_name(f"{blob.name}.incomplete")
    blob.unlink()
    partial.write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="wrong bytes"):
        fetch_model(HubName("org/m"))
    assert fetch_model(HubName("org/m")).read_bytes() == BIG


def test_the_cache_is_the_one_of_other_tools(hub: FakeHub) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir

    hub.repos["org/m"] = {"sub/m-Q8_0.gguf": BIG}
    path = fetch_model(HubName("org/m"))
    cache = HubSettings.from_environment().cache
    other = hf_hub_download("org/m", "sub/m-Q8_0.gguf", cache_dir=cache, endpoint=hub.url)
    assert Path(other) == path and len(hub.downloads()) == 1
    info = scan_cache_dir(cache)
    assert [repo.repo_id for repo in info.repos] == ["org/m"] and not info.warnings


def test_files_that_plain_http_does_not_carry(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 50 GB the library's own road is taken; here the bound is lowered and that road recorded."""
    import huggingface_hub
    from huggingface_hub import constants

    taken: list[str] = []
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 1000)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **_: taken.append(file) or f"/x/{file}")
    hub.repos["org/m"] = {"m-Q8_0.gguf": BIG}
    assert fetch_model(HubName("org/m")) == Path("/x/m-Q8_0.gguf") and taken == ["m-Q8_0.gguf"]


def test_a_hostile_listing(hub: FakeHub) -> None:
    hub.repos["org/m"] = names("../../evil.gguf")
    with pytest.raises(DownloadError, match="outside its folder"):
        fetch_model(HubName("org/m"))


def test_no_such_repository(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no model org/none.*HF_TOKEN"):
        fetch_model(HubName("org/none"))


def test_no_such_revision(hub: FakeHub) -> None:
    hub.repos["org/m"] = names("m.gguf")
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        fetch_model(HubName("org/m", revision="v9"))


def test_gated_and_private_need_a_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/gated"] = hub.repos["org/private"] = names("m.gguf")
    hub.gated.add("org/gated")
    hub.private.add("org/private")
    with pytest.raises(DownloadError, match=r"is gated: accept its terms .* HF_TOKEN"):
        fetch_model(HubName("org/gated"))
    with pytest.raises(ModelNotFound, match="HF_TOKEN"):
        fetch_model(HubName("org/private"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert fetch_model(HubName("org/gated")).name == "m.gguf"
    assert fetch_model(HubName("org/private")).name == "m.gguf"


@pytest.mark.parametrize(("status", "says"), [(403, "refuses org/m .HTTP 403.: set HF_TOKEN"), (429, "asks to wait")])
def test_refusals(hub: FakeHub, status: int, says: str) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=says):
        fetch_model(HubName("org/m"))


def test_offline_uses_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/m"] = names("m-Q8_0.gguf", "m-Q4_K_M.gguf")
    online = fetch_model(HubName("org/m", "Q8_0"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    num_requests = len(hub.log)
    assert fetch_model(HubName("org/m", "q8_0")) == online
    assert fetch_model(HubName("org/m")) == online, "the only file there is"
    with pytest.raises(DownloadError, match=r"no quantization Q4_K_M; there is: Q8_0.*HF_HUB_OFFLINE"):
        fetch_model(HubName("org/m", "Q4_K_M"))
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set; unset .* `llmrun pull org/x`"):
        fetch_model(HubName("org/x"))
    assert len(hub.log) == num_requests


def test_a_dead_hub_falls_back_to_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/m"] = names("m-Q8_0.gguf")
    online = fetch_model(HubName("org/m"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    assert fetch_model(HubName("org/m")) == online
    with pytest.raises(DownloadError, match=r"cannot be reached.*connect to the network"):
        fetch_model(HubName("org/x"))


def test_a_broken_folder_is_not_taken_for_whole(hub: FakeHub) -> None:
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    hub.repos["org/m"] = {**names("config.json", "model-1.safetensors"), "model.safetensors.index.json": index}
    fetch_model(HubName("org/m"))
    with pytest.raises(DownloadError, match="1 of 2 weight files are missing"):
        fetch_model(HubName("org/m"), download=False)


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.repos["org/m"] = names("m.gguf")
    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(DownloadError, match="is full; free some space"):
        fetch_model(HubName("org/m"))


def test_listing_and_removing(hub: FakeHub) -> None:
    hub.repos["org/m"] = {"m-Q8_0.gguf": BIG}
    hub.repos["org/n"] = names("config.json", "model.safetensors")
    fetch_model(HubName("org/m"))
    fetch_model(HubName("org/n"))
    gguf, folder = list_cached()
    assert (gguf.repo, gguf.quants, gguf.num_bytes) == ("org/m", ("Q8_0",), len(BIG))
    assert (folder.repo, folder.quants, folder.num_files) == ("org/n", (), 2)
    assert remove_cached(gguf) == len(BIG)
    assert [model.repo for model in list_cached()] == ["org/n"]


def test_settings_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "ON")
    assert HubSettings.from_environment() == HubSettings("https://mirror.example", tmp_path / "hub", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "c"))
    assert HubSettings.from_environment().cache == tmp_path / "c"
