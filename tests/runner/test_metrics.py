"""Our metrics are read back by Prometheus' own parser."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from runner.metrics import FamilySnapshot, Registry, add_up, render


def filled() -> Registry:
    registry = Registry()
    counter = registry.counter("a_requests_total", "Requests\nand more", "model", "status")
    counter.of('we"ird\\\n', "ok").add(3)
    registry.gauge("a_running", "Running").of().set(1.5)
    sizes = registry.histogram("a_size", "Sizes", (1, 10), "model").of("m")
    for value in (0.5, 1, 5, 100):
        sizes.observe(value)
    sizes.observe(2, times=3)
    return registry


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(text)
    return {(one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples}


def test_the_text_format() -> None:
    assert samples(render(filled().snapshot())) == {
        ("a_requests_total", ('we"ird\\\n', "ok")): 3,
        ("a_running", ()): 1.5,
        ("a_size_bucket", ("m", "1")): 2,
        ("a_size_bucket", ("m", "10")): 6,
        ("a_size_bucket", ("m", "+Inf")): 7,
        ("a_size_sum", ("m",)): 112.5,
        ("a_size_count", ("m",)): 7,
    }


def test_snapshots_travel_and_add_up() -> None:
    one = filled().snapshot()
    travelled = msgspec.json.decode(msgspec.json.encode(one), type=list[FamilySnapshot])
    other = Registry()
    other.counter("a_requests_total", "Requests", "model", "status").of("new", "ok").add()
    total = samples(render(add_up([one, travelled, other.snapshot()])))
    assert total["a_requests_total", ('we"ird\\\n', "ok")] == 6
    assert total["a_requests_total", ("new", "ok")] == 1
    assert total["a_size_bucket", ("m", "10")] == 12
    assert total["a_size_sum", ("m",)] == 225
