"""Guided decoding: what a grammar accepts and rejects, byte by byte, and how faults are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.engines import gbnf
from runner.engines.guidance import Guide, Matcher
from runner.errors import EngineFailed, RequestError, UnsupportedField
from runner.types import GuidedDecoding

EOS = 256
VOCAB = 300


class ByteVocabulary:
    """One token for each byte, then the end token and another control token; the model's rows are wider."""

    special_ids = frozenset({EOS, EOS + 1})

    def all_token_bytes(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b"<end>", b"a"]

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return list(text.encode())


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide(ByteVocabulary(), vocab_size=VOCAB, eos_token_ids=[EOS])


def allowed(matcher: Matcher) -> set[int]:
    row = np.zeros(VOCAB, np.float32)
    matcher.mask(row)
    return {int(token) for token in np.flatnonzero(np.isfinite(row))}


def accepts(guide: Guide, text: str, **guided: Any) -> bool:
    """Through masks, as a model would go."""
    matcher = guide.matcher(GuidedDecoding(**guided))
    for byte in text.encode():
        may_follow = matcher.allows(byte)
        assert may_follow == (byte in allowed(matcher))
        if not may_follow:
            return False
        matcher.accept(byte)
    return EOS in allowed(matcher)


def grammar_cases(kind: str) -> list[Any]:
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "structured" / "llamacpp_grammar_integration.json"
    if not path.is_file():
        return []
    cases = json.loads(path.read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases if case["kind"] == kind]


@pytest.mark.parametrize("case", grammar_cases("grammar"))
def test_llama_cpps_grammar_vectors(guide: Guide, case: dict[str, Any]) -> None:
    if "<[" in case["body"]:
        pytest.skip("matches token ids; see test_token_ids_in_a_grammar")
    wrong = [text for text in case["accept"] if not accepts(guide, text, grammar=case["body"])]
    wrong += [text for text in case["reject"] if accepts(guide, text, grammar=case["body"])]
    assert wrong == []


LLAMA_CPP_DIFFERS = {
    "min 0": {"100000000000000000000000000000000"},  # llama.cpp allows 16 digits at most; JSON Schema has no limit
    "min 2": {"12345678900000000"},
    "empty schema (object)": {"[]", "null", '""', "true"},  # {} allows everything; llama.cpp makes it an object
    "min+max items": {"1"},  # `items` says nothing of what is no array
    "object properties": None,  # additional properties are allowed unless forbidden
    "required props": None,  # uniqueItems: refused
}
"""Where JSON Schema says otherwise than llama.cpp's converter: its texts that are accepted although it rejects them."""


@pytest.mark.parametrize("case", grammar_cases("schema"))
def test_llama_cpps_schema_vectors(guide: Guide, case: dict[str, Any]) -> None:
    schema = json.loads(case["body"])
    if case["name"] == "required props":
        with pytest.raises(RequestError, match="uniqueItems"):
            accepts(guide, "{}", json_schema=schema)
        return
    assert [text for text in case["accept"] if not accepts(guide, text, json_schema=schema)] == []
    wrong = {text for text in case["reject"] if accepts(guide, text, json_schema=schema)}
    known = LLAMA_CPP_DIFFERS.get(case["name"], set())
    assert known is None or wrong == known


def schema_suite() -> list[Any]:
    root = Path(__file__).resolve().parents[4] / "shared" / "data" / "structured" / "json-schema-test-suite" / "tests"
    names = ("type", "enum", "const", "required", "properties", "items", "minimum", "maximum", "minLength", "maxLength")
    return [
        pytest.param(path, id=f"{path.parent.name}-{path.stem}")
        for draft in ("draft7", "draft2020-12")
        for name in names
        if (path := root / draft / f"{name}.json").is_file()
    ]


@pytest.mark.parametrize("path", schema_suite())
def test_json_schema_test_suite(guide: Guide, path: Path) -> None:
    """A schema is refused, or no invalid document gets through; keywords are never ignored."""
    num_checked = 0
    for group in json.loads(path.read_text()):
        try:
            guide.matcher(GuidedDecoding(json_schema=group["schema"]))
        except RequestError:
            continue  # refused, which is allowed; ignoring a keyword is not
        for test in group["tests"]:
            text = json.dumps(test["data"], ensure_ascii=False)
            if "\\u" in text or "\\" in text:
                continue
            if not test["valid"]:
                num_checked += 1
                assert not accepts(guide, text, json_schema=group["schema"]), (group["description"], text)
    assert num_checked > 0


def test_choice_regex_and_json_object(guide: Guide) -> None:
    choice = ("yes", "no", 'a "quoted" one\n')
    assert all(accepts(guide, text, choice=choice) for text in choice)
    assert not accepts(guide, "ye", choice=choice)
    assert accepts(guide, "2024-05-17", regex=r"^\d{4}-\d{2}-\d{2}$")
    assert not accepts(guide, "2024-05-1", regex=r"\d{4}-\d{2}-\d{2}")
    assert accepts(guide, '{"a": [1, null, "é"]}', json_object=True)
    assert not accepts(guide, "[1]", json_object=True)
    assert accepts(guide, '{\n  "a": 1\n}', json_object=True)
    assert not accepts(guide, '{\n\n\n"a": 1}', json_object=True)  # blanks are bounded


def test_a_complete_answer_is_known(guide: Guide) -> None:
    matcher = guide.matcher(GuidedDecoding(choice=("no",)))
    for byte in b"no":
        assert not matcher.is_complete
        matcher.accept(byte)
    assert matcher.is_complete
    with pytest.raises(EngineFailed):
        matcher.accept(ord("x"))


def test_thousands_of_choices(guide: Guide) -> None:
    choices = tuple(f"{number} {'x' * 100}" for number in range(4096))
    matcher = guide.matcher(GuidedDecoding(choice=choices))
    for byte in choices[4095].encode():
        assert matcher.allows(byte)
        matcher.accept(byte)
    assert matcher.is_complete


@pytest.mark.parametrize(
    "guided",
    [
        GuidedDecoding(grammar="root ::= root"),
        GuidedDecoding(json_schema={"$ref": "#/definitions/x", "definitions": {"x": {"$ref": "#/definitions/x"}}}),
    ],
)
def test_what_no_text_can_match_is_the_requests_fault(guide: Guide, guided: GuidedDecoding) -> None:
    with pytest.raises(RequestError, match="no text can match it"):
        guide.matcher(guided)


def test_a_grammar_that_is_too_complex_is_the_requests_fault(guide: Guide) -> None:
    def walk() -> None:
        matcher = guide.matcher(GuidedDecoding(regex="(a{1000}){1000}"))
        for _ in range(4):
            matcher.mask(np.zeros(VOCAB, np.float32))
            matcher.accept(ord("a"))

    with pytest.raises(RequestError, match=r"guided\.regex|too complex"):
        for _ in range(2):
            walk()


def test_matchers_of_one_grammar_are_independent(guide: Guide) -> None:
    guided = GuidedDecoding(regex="ab")
    first, second = guide.matcher(guided), guide.matcher(guided)
    first.accept(ord("a"))
    assert allowed(first) == {ord("b")}
    assert allowed(second) == {ord("a")}


@pytest.mark.parametrize(
    ("guided", "message"),
    [
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"json_schema": False}, "allows no answer"),
        ({"regex": "[a-"}, "regex"),
        ({"choice": ()}, "empty"),
        ({"grammar": 'root ::= "a'}, r'line 1, column \d+: " is missing'),
        ({"grammar": 'rot ::= "a"'}, "no rule named root"),
        ({"grammar": "root ::= other"}, "other, which is not defined"),
        ({"grammar": "root ::= [b-a]"}, "range b-a is empty"),
        ({"grammar": r'root ::= "\q"'}, r"unknown escape"),
        ({"grammar": 'root ::= "a" )'}, "new line was expected"),
        ({"grammar": "root ::= " + "(" * 5000}, "nested deeper"),
        ({"grammar": 'root ::= "a"{3,2}'}, "wrong order"),
        ({}, "exactly one"),
        ({"regex": "a", "choice": ("b",)}, "exactly one"),
    ],
)
def test_faults_are_the_clients_and_are_named(guide: Guide, guided: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        guide.matcher(GuidedDecoding(**guided))


def test_a_deep_schema_is_refused(guide: Guide) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="recursion limit"):
        guide.matcher(GuidedDecoding(json_schema=schema))


def test_a_greedy_terminal_does_not_swallow_what_follows(guide: Guide) -> None:
    """[a-z]+ before "end" in a recursive grammar: the longest match must not win."""
    grammar = 'root ::= word tail\ntail ::= "end" | "(" tail ")"\nword ::= [a-z]+'
    for text in ("abcend", "endend", "abc(end)", "abc((end))"):
        assert accepts(guide, text, grammar=grammar)
    assert not accepts(guide, "abc(end", grammar=grammar)


def test_token_ids_in_a_grammar(guide: Guide) -> None:
    matcher = guide.matcher(GuidedDecoding(grammar="root ::= <[10]> (!<[11]>)* <[11]>"))
    assert allowed(matcher) == {10}
    matcher.accept(10)
    assert 65 in allowed(matcher)
    matcher.accept(65)
    matcher.accept(11)
    assert matcher.is_complete


def test_gbnf_without_recursion_is_one_regex() -> None:
    assert gbnf.to_lark('root ::= "a" b # comment\nb ::= [0-9]+ |\n  "x"?').count("\n") == 0
    assert gbnf.to_lark('root ::= "(" root ")" | "x"').count("\n") > 0


def test_control_and_padding_tokens_never_come(guide: Guide) -> None:
    inside = guide.matcher(GuidedDecoding(regex="[a-z<>]*"))
    assert allowed(inside) == {*b"abcdefghijklmnopqrstuvwxyz<>", EOS}


def test_a_model_without_an_end_token_is_refused() -> None:
    with pytest.raises(UnsupportedField, match="end token"):
        Guide(ByteVocabulary(), vocab_size=VOCAB, eos_token_ids=[])
