"""GgufFile: what it reads, and what it says of files that are wrong."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model_cards.errors import CardError, ModelFileError, ModelNotFound
from model_cards.gguf import GgufFile
from model_cards.gguf_arrays import NumberArray, StringArray
from model_cards.gguf_card import fields_from_gguf
from tests.model_cards import gguf_maker as make

CORPUS = Path(__file__).parent / "gguf_corpus"
SMALL = make.gguf(make.spm_metadata(), {"token_embd.weight": (8, 4), "output.weight": (8,)})


def read_everything(path: Path) -> None:
    """All that a launcher would do with the file."""
    from model_cards.gguf_tokenizer import make_tokenizer

    with GgufFile.open(path) as gguf:
        for item in gguf.metadata.values():
            if isinstance(item, StringArray):
                item.decode()
                item.decode_pairs()
            elif isinstance(item, NumberArray):
                list(item.values())
        fields_from_gguf(gguf)
        make_tokenizer(gguf).encode("ab <s> abc")


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_and_tensors(tmp_path: Path, version: int) -> None:
    metadata = make.spm_metadata(x__float=0.5, x__bool=True, x__negative=-3, x__ints=[1, -2, 3])
    path = make.write(tmp_path / "m.gguf", make.gguf(metadata, {"a.weight": (8, 4), "b.weight": (3,)}, version))
    with GgufFile.open(path) as gguf:
        assert (gguf.version, gguf.architecture, gguf.alignment) == (version, "llama", 32)
        assert list(gguf.metadata) == list(metadata)
        assert gguf.metadata["x.float"] == 0.5 and gguf.metadata["x.bool"] is True and gguf.metadata["x.negative"] == -3
        assert list(gguf.metadata["x.ints"]) == [1, -2, 3]
        tokens = gguf.get_strings("tokenizer.ggml.tokens")
        assert tokens is not None and tokens.decode() == make.SPM_TOKENS and tokens[-1] == "<tool>"
        assert [(t.name, t.shape, t.type.name, t.offset) for t in gguf.tensors] == [
            ("a.weight", (8, 4), "F32", 0),
            ("b.weight", (3,), "F32", 128),
        ]
        assert gguf.num_parameters == 35
        assert gguf.bytes_by_type == {"F32": 140}
        assert gguf.quantization == "Q4_K_M"


def test_quantization_without_a_file_type_is_the_largest_tensor_type(tmp_path: Path) -> None:
    path = make.write(tmp_path / "m.gguf", make.gguf({"general.architecture": "x"}, {"a": (8,)}))
    with GgufFile.open(path) as gguf:
        assert gguf.quantization == "F32"


def test_alignment_of_the_file_holds(tmp_path: Path) -> None:
    data = make.header(1, 1) + make.pair("general.alignment", 8) + make.tensor("a", (3,), 0, 0)
    path = make.write(tmp_path / "m.gguf", data + bytes(-len(data) % 8) + bytes(12))
    with GgufFile.open(path) as gguf:
        assert gguf.alignment == 8 and gguf.num_parameters == 3


def test_wrong_type_of_a_key_is_named(tmp_path: Path) -> None:
    path = make.write(tmp_path / "m.gguf", make.gguf({"a": "text", "b": 1, "c": ["x"]}))
    with GgufFile.open(path) as gguf:
        with pytest.raises(ModelFileError, match=r"'a' is 'text'; it should be int"):
            gguf.get("a", int)
        with pytest.raises(ModelFileError, match="should be an array of strings"):
            gguf.get_strings("b")
        with pytest.raises(ModelFileError, match="should be an array of numbers"):
            gguf.get_numbers("c")
        assert gguf.get("nothing", int, 7) == 7


def test_no_such_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        GgufFile.open(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="a folder"):
        GgufFile.open(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GgufFile.open(tmp_path / "pipe.gguf")


def array_head(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", make.ARRAY, kind, count)


HOSTILE = {
    "empty": (b"", "has 0 bytes"),
    "short": (b"GGUF\x03\0\0\0", "a header alone has 24"),
    "magic": (b"GGML" + SMALL[4:], r"begins with b'GGML'"),
    "version 1": (make.gguf({}, version=1), "version 1; versions 2 and 3"),
    "version 4": (make.gguf({}, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many keys": (make.header(0, 1 << 60), "metadata keys; at most"),
    "many tensors": (make.header(1 << 62, 0), "tensors; at most"),
    "no keys": (make.header(0, 3) + bytes(4), "ends within its header"),
    "key past the end": (make.header(0, 1) + struct.pack("<Q", 1 << 63) + bytes(64), "past the end"),
    "key too long": (make.header(0, 1) + make.pair("k" * 70_000, 1), "70000 bytes long; at most 65535"),
    "key not UTF-8": (make.header(0, 1) + make.pair(b"\xff\xfe", 1), "not UTF-8"),
    "empty key": (make.header(0, 1) + make.pair("", 1), "is empty"),
    "key twice": (make.header(0, 2) + make.pair("a", 1) + make.pair("a", 2), "twice there: 'a'"),
    "value not UTF-8": (
        make.header(0, 1) + make.string("a") + struct.pack("<I", 8) + make.string(b"\xc3"),
        "not UTF-8",
    ),
    "value type": (make.header(0, 1) + make.string("a") + struct.pack("<I", 77), "value type 77"),
    "array in array": (make.header(0, 1) + make.string("a") + array_head(9, 1) + bytes(32), "an array in an array"),
    "element type": (make.header(0, 1) + make.string("a") + array_head(50, 1) + bytes(32), "element type 50"),
    "huge numbers": (make.header(0, 1) + make.string("a") + array_head(4, 1 << 61) + bytes(64), "more than the rest"),
    "huge strings": (make.header(0, 1) + make.string("a") + array_head(8, 1 << 61) + bytes(64), "more than the rest"),
    "string past the end": (
        make.header(0, 1) + make.string("a") + array_head(8, 2) + struct.pack("<QQ", 1 << 63, 1 << 63) + bytes(64),
        "ends within its header",
    ),
    "alignment 0": (make.gguf({"general.alignment": 0}), "power of two"),
    "alignment 3": (make.gguf({"general.alignment": 3}), "power of two"),
    "alignment text": (make.gguf({"general.alignment": "x"}), "should be int"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(ModelFileError, match=message):
        GgufFile.open(make.write(tmp_path / "m.gguf", data))


def with_tensor(raw: bytes, data: int = 64) -> bytes:
    head = make.header(1, 0) + raw
    return head + bytes(-len(head) % 32) + bytes(data)


HOSTILE_TENSORS = {
    "name too long": (with_tensor(make.tensor("n" * 64, (1,), 0, 0)), "64 bytes long; at most 63"),
    "dimensions": (with_tensor(make.tensor("a", (1, 1, 1, 1, 1), 0, 0)), "5 dimensions; at most 4"),
    "overflow": (with_tensor(make.tensor("a", (1 << 40, 1 << 40), 0, 0)), "cannot have the shape"),
    "type": (with_tensor(make.tensor("a", (1,), 4, 0)), "type 4, which"),
    "block": (with_tensor(make.tensor("a", (33,), 8, 0)), "Q8_0 cannot have the shape"),
    "offset": (with_tensor(make.tensor("a", (1,), 0, 7)), "it should begin at 0"),
    "offset past the end": (with_tensor(make.tensor("a", (1,), 0, 1 << 63)), "it should begin at 0"),
    "cut off": (with_tensor(make.tensor("a", (64,), 0, 0)), "cut off; download it again"),
    "twice": (
        make.header(2, 0) + make.tensor("a", (8,), 0, 0) + make.tensor("a", (8,), 0, 32) + bytes(256),
        "'a' is there twice",
    ),
    "overlap": (
        make.header(2, 0) + make.tensor("a", (8,), 0, 0) + make.tensor("b", (8,), 0, 0) + bytes(256),
        "it should begin at 32",
    ),
    "header": (make.header(1, 0) + make.string("a")[:5], "ends within its header"),
}


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_hostile_tensors_are_refused(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE_TENSORS[name]
    with GgufFile.open(make.write(tmp_path / "m.gguf", data)) as gguf, pytest.raises(ModelFileError, match=message):
        _ = gguf.tensors


def test_huge_counts_cost_no_memory(tmp_path: Path) -> None:
    data = make.header(0, 1) + make.string("a") + array_head(8, 500_000) + bytes(4_100_000)
    path = make.write(tmp_path / "m.gguf", data)
    tracemalloc.start()
    try:
        GgufFile.open(path).close()
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_every_truncation_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for size in [*range(0, 400, 7), *range(400, len(SMALL), 61)]:
        with pytest.raises(ModelFileError):
            read_everything(make.write(path, SMALL[:size]))


def test_shards_are_one_file(tmp_path: Path) -> None:
    names = [f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for number, name in enumerate(names):
        split = {"split.no": number, "split.count": 3}
        metadata = make.spm_metadata() | split if number == 0 else split
        make.write(tmp_path / name, make.gguf(metadata, {f"t{number}": (8,)}))
    for name in names:
        with GgufFile.open(tmp_path / name) as gguf:
            assert gguf.path.name == names[0] and [shard.name for shard in gguf.shards] == names
            assert [t.name for t in gguf.tensors] == ["t0", "t1", "t2"]
            assert gguf.file_size == sum((tmp_path / n).stat().st_size for n in names)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelFileError, match=r"1 of 3 shards are missing .*m-00002-of-00003\.gguf"):
        GgufFile.open(tmp_path / names[2])


def test_shards_that_contradict_their_names(tmp_path: Path) -> None:
    for number in (1, 2):
        make.write(tmp_path / f"m-{number:05d}-of-00002.gguf", make.gguf({"split.no": 0, "split.count": 2}))
    with GgufFile.open(tmp_path / "m-00001-of-00002.gguf") as gguf, pytest.raises(ModelFileError, match="shard 2 of 2"):
        _ = gguf.tensors
    renamed = make.write(tmp_path / "renamed.gguf", make.gguf({"split.no": 0, "split.count": 2}))
    with pytest.raises(ModelFileError, match="one of 2 shards"):
        GgufFile.open(renamed)


def mutate(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    raw = bytearray(data)
    for position, byte in edits:
        raw[position % len(raw)] = byte
    return bytes(raw[: len(raw) - cut % len(raw)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.sampled_from([0, 0, 0, 1, 64, 300]),
)
@example(edits=[(8, 0xFF)], cut=0)
@example(edits=[(31, 0x80)], cut=0)
def test_mutated_files_are_read_or_refused(tmp_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    path = make.write(tmp_path / "m.gguf", mutate(SMALL, edits, cut))
    with contextlib.suppress(CardError):
        read_everything(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_random_bytes_behind_a_header_are_refused(tmp_path: Path, tail: bytes) -> None:
    path = make.write(tmp_path / "m.gguf", make.header(2, 2) + tail)
    with pytest.raises(ModelFileError):
        read_everything(path)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.gguf")), ids=lambda path: path.stem)
def test_kept_cases_are_read_or_refused(path: Path) -> None:
    """Files that once made the reader or the tokenizer raise something else."""
    with contextlib.suppress(CardError):
        read_everything(path)


def test_reads_the_shared_models(shared_data: Path) -> None:
    for path in sorted((shared_data / "models").glob("*.gguf")):
        with GgufFile.open(path) as gguf:
            assert gguf.num_parameters > 250_000 and gguf.quantization in path.name.upper()
