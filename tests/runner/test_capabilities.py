from __future__ import annotations

from typing import Any

import pytest

from runner.capabilities import Capabilities, Reporter
from runner.errors import UnsupportedField
from runner.types import EngineInfo, GuidedDecoding, SamplingParams
from tests.runner.fakes import ALL

ASKED: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 0,
    "logit_bias": {1: 2.0},
    "logprobs": 0,
    "bad_words_ids": ((1,),),
    "beam_width": 2,
    "length_penalty": 0.5,
}


def capabilities(*names: str) -> Capabilities:
    return Capabilities(EngineInfo(name="toy", capabilities=names))


def test_every_sampling_field_is_covered_here() -> None:
    assert {*ASKED, "guided"} == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize("field", ASKED)
def test_a_field_that_is_not_honoured_is_refused_by_name(field: str) -> None:
    named = "bad_words" if field == "bad_words_ids" else field
    others = capabilities(*(name for name in ALL if name != field))
    sampling = SamplingParams(**{field: ASKED[field]})
    with pytest.raises(UnsupportedField, match=rf"engine 'toy' does not honour {named} ") as caught:
        others.check_sampling(sampling, Reporter(others, lenient=False))
    assert caught.value.field == named
    everything = capabilities(*ALL)
    assert everything.check_sampling(sampling, Reporter(everything, lenient=False)) is sampling


@pytest.mark.parametrize("field", ASKED)
def test_lenient_leaves_it_out_and_says_so(field: str) -> None:
    nothing = capabilities()
    reporter = Reporter(nothing, lenient=True)
    assert nothing.check_sampling(SamplingParams(**{field: ASKED[field]}), reporter) == SamplingParams()
    (warning,) = reporter.warnings
    assert "left out" in warning


def test_neutral_values_need_no_capability() -> None:
    nothing = capabilities()
    assert nothing.check_sampling(SamplingParams(), Reporter(nothing, lenient=False)) == SamplingParams()


@pytest.mark.parametrize(
    "guided",
    [
        GuidedDecoding(json_schema={}),
        GuidedDecoding(json_object=True),
        GuidedDecoding(regex="a"),
        GuidedDecoding(grammar="root ::= 'a'"),
        GuidedDecoding(choice=("a",)),
    ],
)
def test_guided_decoding_is_honoured_kind_by_kind(guided: GuidedDecoding) -> None:
    (kind,) = (name for name in GuidedDecoding.__struct_fields__ if getattr(guided, name) is not None)
    honouring = capabilities(f"guided.{kind}")
    sampling = SamplingParams(guided=guided)
    assert honouring.check_sampling(sampling, Reporter(honouring, lenient=False)).guided == guided
    others = capabilities(*(name for name in ALL if name != f"guided.{kind}"))
    with pytest.raises(UnsupportedField, match=kind):
        others.check_sampling(sampling, Reporter(others, lenient=False))


def test_min_tokens() -> None:
    assert capabilities("min_tokens").check_min_tokens(3, Reporter(capabilities(), lenient=False)) == 3
    assert capabilities().check_min_tokens(0, Reporter(capabilities(), lenient=False)) == 0
    with pytest.raises(UnsupportedField, match="min_tokens"):
        capabilities().check_min_tokens(3, Reporter(capabilities(), lenient=False))


def test_adapters_by_name_or_all() -> None:
    one = capabilities("adapter:sql", "adapter:prose")
    reporter = Reporter(one, lenient=False)
    assert one.check_adapter("sql", reporter) == "sql"
    assert one.check_adapter(None, reporter) is None
    assert capabilities("adapter").check_adapter("any", reporter) == "any"
    with pytest.raises(UnsupportedField, match=r"adapter .*loaded adapters: prose, sql") as caught:
        one.check_adapter("law", reporter)
    assert caught.value.field == "adapter"


def test_a_cards_defaults_that_are_not_honoured_are_named() -> None:
    kept, dropped = capabilities("temperature").split_defaults({"temperature": 0.6, "top_k": 20, "top_p": 1.0})
    assert (kept, dropped) == ({"temperature": 0.6, "top_p": 1.0}, ["top_k"])
