"""OpenAI bodies -> ChatRequest: what is honoured, what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RequestError, UnsupportedField, UsageError
from runner.openai_requests import (
    RequestDefaults,
    decode_body,
    parse_chat,
    parse_completion,
    parse_embedding,
    request_defaults,
)
from runner.openai_tables import CHAT_FIELDS, COMPLETION_FIELDS, IGNORED, NOT_BUILT
from runner.options import RunOptions
from runner.types import ChatRequest, GuidedDecoding

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatRequest:
    return parse_chat({"messages": HELLO, **fields}, request_id="r").requests[0]


def test_every_sampling_field_arrives() -> None:
    request = chat(
        model="m",
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        seed=3,
        logit_bias={"17": -100},
        bad_words=["x"],
        n=2,
        logprobs=True,
        top_logprobs=4,
        max_completion_tokens=9,
        min_tokens=2,
        stop="END",
        stop_token_ids=[5],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )
    sampling = msgspec.to_builtins(request.sampling)
    assert sampling == {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "seed": 3,
        "logit_bias": {17: -100.0},
        "bad_words": ("x",),
        "n": 2,
        "logprobs": 4,
    }
    assert (request.model, request.max_tokens, request.min_tokens) == ("m", 9, 2)
    assert (request.stop, request.stop_token_ids) == (("END",), (5,))
    assert request.ignore_eos and request.include_stop_str_in_output and not request.skip_special_tokens


def test_what_was_not_asked_stays_unasked() -> None:
    assert chat() == ChatRequest(id="r", messages=HELLO)
    nulls = dict.fromkeys([*CHAT_FIELDS, *IGNORED, *NOT_BUILT])
    assert parse_chat({**nulls, "messages": HELLO}, request_id="r").requests[0] == chat()


def test_minus_one_means_off_or_random() -> None:
    sampling = chat(top_k=-1, seed=-1).sampling
    assert (sampling.top_k, sampling.seed) == (0, None)


def test_ignored_fields_change_nothing() -> None:
    fields: dict[str, Any] = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": False,
    }
    assert chat(**fields) == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("top_p", 1.5),
        ("top_p", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("seed", 2**70),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**400),
        ("max_tokens", "many"),
        ("min_tokens", -1),
        ("n", 0),
        ("n", 129),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["x"] * 10_000),
        ("stop", "x" * 5000),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", [1]),
        ("logprobs", 3),
        ("top_logprobs", 21),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", ["hello"]),
        ("messages", [{"role": ["user"], "content": "x"}]),
        ("tools", [{"type": "function"}]),
        ("tools", {"type": "function"}),
        ("tool_choice", "sometimes"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", "json"),
        ("guided_choice", []),
        ("guided_json", "{"),
        ("guided_regex", 5),
        ("reasoning_effort", "extreme"),
        ("chat_template_kwargs", []),
        ("user", 5),
    ],
)
def test_wrong_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**{field: value})
    assert caught.value.field is not None and caught.value.field.startswith(field)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temprature", 1, "did you mean temperature"),
        ("n_predict", 1, "did you mean max_tokens"),
        ("num_ctx", 1, "--context-length"),
        ("frobnicate", None, "--lenient"),
        ("suffix", "x", "suffix"),
        ("best_of", 2, "best_of"),
        ("functions", [{}], "use tools"),
        ("audio", {}, "audio"),
        ("modalities", ["audio"], "only ['text']"),
        ("tool_choice", "required", "'auto' or 'none'"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "named function"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'"),
        ("structured_outputs", {"structural_tag": "x"}, "structural_tag"),
    ],
)
def test_what_is_not_built_is_refused_with_the_next_step(field: str, value: Any, says: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        chat(**{field: value})
    assert says in str(caught.value)


def test_a_response_format_that_is_no_object_is_quoted() -> None:
    with pytest.raises(RequestError, match="response_format: got 'json_object', allowed is an object"):
        chat(response_format="json_object")


def test_lenient_warns_instead() -> None:
    call = parse_chat({"messages": HELLO, "frobnicate": 1, "suffix": "x", "top_k": 3}, request_id="r", lenient=True)
    assert call.requests[0].sampling.top_k == 3
    assert [name for name in ("frobnicate", "suffix") if any(name in one for one in call.warnings)] == [
        "frobnicate",
        "suffix",
    ]
    assert not any("--lenient" in one for one in call.warnings), "it is lenient already"
    with pytest.raises(RequestError):
        parse_chat({"messages": HELLO, "top_k": "x"}, request_id="r", lenient=True)


def test_two_names_of_one_field_must_agree() -> None:
    assert chat(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    with pytest.raises(RequestError, match="differ"):
        chat(max_tokens=5, max_completion_tokens=6)


def test_min_tokens_above_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5"):
        chat(min_tokens=5, max_tokens=4)


def test_parts_are_joined_and_nulls_left_out() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "be brief", "name": None},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    assert chat(messages=messages).messages == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]


def test_tools_go_to_the_template_unless_the_choice_is_none() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert chat(tools=tools, tool_choice="auto").tools == tools
    assert chat(tools=tools, tool_choice="none").tools is None


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, GuidedDecoding(json_object=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}},
            GuidedDecoding(json_schema={"type": "null"}),
        ),
        ({"guided_json": '{"type": "null"}'}, GuidedDecoding(json_schema={"type": "null"})),
        ({"guided_regex": "a+"}, GuidedDecoding(regex="a+")),
        ({"guided_choice": ["a", "b"]}, GuidedDecoding(choice=("a", "b"))),
        ({"guided_grammar": 'root ::= "a"'}, GuidedDecoding(grammar='root ::= "a"')),
        ({"grammar": 'root ::= "a"'}, GuidedDecoding(grammar='root ::= "a"')),
        ({"structured_outputs": {"choice": ["a"], "json": None}}, GuidedDecoding(choice=("a",))),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, GuidedDecoding(regex="a")),
    ],
)
def test_all_spellings_of_guided_decoding(fields: dict[str, Any], guided: GuidedDecoding | None) -> None:
    assert chat(**fields).sampling.guided == guided


def test_two_constraints_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="exclude each other"):
        chat(guided_regex="a", response_format={"type": "json_object"})
    with pytest.raises(RequestError, match="exclude each other"):
        chat(structured_outputs={"regex": "a", "choice": ["b"]})


def test_schemas_nested_too_deep_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"properties": schema}
    with pytest.raises(RequestError, match="nested"):
        chat(guided_json=schema)


def test_continuing_the_last_message() -> None:
    request = chat(continue_final_message=True)
    assert request.continue_final_message and not request.add_generation_prompt
    with pytest.raises(RequestError, match="exclude each other"):
        chat(continue_final_message=True, add_generation_prompt=True)


def test_stream_options() -> None:
    call = parse_chat({"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}, request_id="r")
    assert call.stream and call.include_usage
    with pytest.raises(RequestError, match="stream_options"):
        parse_chat({"messages": HELLO, "stream": True, "stream_options": {"x": 1}}, request_id="r")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [3]], ["a", [3]]),
    ],
)
def test_all_forms_of_prompts(prompt: Any, prompts: list[Any]) -> None:
    call = parse_completion({"prompt": prompt, "n": 2, "best_of": 2}, request_id="r")
    assert [request.prompt for request in call.requests] == prompts
    assert len({request.id for request in call.requests}) == len(prompts)
    assert call.n == 2
    assert call.requests[0].max_tokens == 16


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [1, "a", 2.5], {}, 5, [True, "a", None], [2**40]])
def test_wrong_prompts(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt"):
        parse_completion({"prompt": prompt}, request_id="r")


def test_choices_are_bounded_over_all_prompts() -> None:
    assert parse_completion({"prompt": ["a"] * 16, "n": 128}, request_id="r").n == 128
    with pytest.raises(RequestError, match="at most 2048 choices"):
        parse_completion({"prompt": ["a"] * 17, "n": 128}, request_id="r")


def test_completions_have_their_own_fields() -> None:
    call = parse_completion({"prompt": "a", "logprobs": 0, "echo": True, "max_tokens": 0}, request_id="r")
    assert (call.requests[0].sampling.logprobs, call.requests[0].echo, call.requests[0].max_tokens) == (0, True, 0)
    with pytest.raises(UnsupportedField, match="messages"):
        parse_completion({"prompt": "a", "messages": HELLO}, request_id="r")
    assert "prompt" in COMPLETION_FIELDS and "prompt" not in CHAT_FIELDS


def test_embeddings() -> None:
    call = parse_embedding({"model": "m", "input": ["a", [1]], "encoding_format": "base64", "user": "u"})
    assert (call.model, call.inputs, call.base64, call.dimensions) == ("m", ("a", [1]), True, None)
    for body in ({}, {"input": []}, {"input": "a", "encoding_format": "hex"}, {"input": "a", "stream": True}):
        with pytest.raises(RequestError):
            parse_embedding(body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{'a': 1}",
        b'{"a": 1,}',
        b"a=1&b=2",
    ],
)
def test_bodies_that_are_no_json_objects(raw: bytes) -> None:
    with pytest.raises(RequestError):
        decode_body(raw)


@pytest.mark.parametrize("text", ["\ud800", "a \ud83d", "\ud800 and more text", "\udc00 and more text"])
def test_half_a_surrogate_pair_is_called_so(text: str) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        decode_body(json.dumps({"stop": [text]}).encode())


def test_good_bodies() -> None:
    assert decode_body(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 2}
    assert decode_body('{"a": "\\ud83d\\ude00 \u00e9"}'.encode()) == {"a": "\U0001f600 \u00e9"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted({*CHAT_FIELDS, *COMPLETION_FIELDS, *IGNORED, *NOT_BUILT})), JSON)
def test_any_value_is_taken_or_refused(field: str, value: Any) -> None:
    for parse, body in ((parse_chat, {"messages": HELLO}), (parse_completion, {"prompt": "x"})):
        try:
            call = parse({**body, field: value}, request_id="r")  # type: ignore[operator]
        except RequestError as error:
            assert str(error)
        else:
            msgspec.msgpack.encode(call.requests)


def test_defaults_yield_to_the_body() -> None:
    defaults = RequestDefaults(fields={"temperature": 0.5, "max_tokens": 7, "model": "m"}, system="be kind")
    request = parse_chat({"messages": HELLO, "max_completion_tokens": 3}, request_id="r", defaults=defaults).requests[0]
    assert (request.sampling.temperature, request.max_tokens, request.model) == (0.5, 3, "m")
    assert request.messages == [{"role": "system", "content": "be kind"}, *HELLO]
    own = [{"role": "system", "content": "mine"}, *HELLO]
    assert parse_chat({"messages": own}, request_id="r", defaults=defaults).requests[0].messages == own
    assert parse_completion({"prompt": "a"}, request_id="r", defaults=defaults).requests[0].max_tokens == 7


def test_request_template(tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_text('{"model": "m", "temperature": 0.7, "max_completion_tokens": 99}')
    defaults = request_defaults(RunOptions(request_template=str(path), temperature=0.1, system="s"))
    assert defaults == RequestDefaults(fields={"model": "m", "temperature": 0.1, "max_tokens": 99}, system="s")
    for text in ("{", '{"temprature": 1}', '{"temperature": -1}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="template"):
            request_defaults(RunOptions(request_template=str(path)))
    with pytest.raises(UsageError, match="cannot be read"):
        request_defaults(RunOptions(request_template=str(tmp_path / "none")))
