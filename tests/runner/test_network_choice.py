"""What a command line with in=dyn or out=dyn may say, and the messages where it may not."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import UsageError
from runner.net.settings import read_settings
from runner.options import RunOptions
from tests.runner.test_plan import plan


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["in=dyn"], {}, "in=dyn needs an address: in=dyn://namespace"),
        (["in=dyn://a b", "m.gguf"], {}, "is no address"),
        (["in=http", "out=dyn://a*"], {}, "is no address"),
        (
            ["in=dyn://a", "out=echo_full"],
            {"migration_limit": "3"},
            "an answer of out=echo_full cannot go on at another",
        ),
        (["in=http", "out=dyn,llamacpp"], {}, "cannot stand in out=A,B"),
        (["in=http", "out=dyn"], {"threads": "2"}, "--threads is a flag of the worker"),
        (["in=http", "out=dyn"], {"request_plane": "tcp"}, "--request-plane is a flag of in=dyn"),
        (["in=http", "out=dyn"], {"http_workers": "2"}, "start more ingresses"),
        (["in=http", "out=dyn"], {"router_mode": "best"}, "--router-mode: got 'best'; allowed: round-robin"),
        (["in=http", "out=dyn"], {"store": "redis"}, "--store: got 'redis'; allowed: etcd, file"),
        (["in=http", "out=dyn"], {"chat_template": "t.jinja"}, "--chat-template is a flag of the worker; or name the"),
        (["in=http", "out=dyn://a"], {"model_config": "c"}, "--model-config is a flag of the worker; or name the"),
        (["in=http", "out=dyn"], {"model_name": "x"}, "--model-name is a flag of the worker or of out=dyn://ADDRESS"),
        (["in=dyn://a", "m.gguf"], {"router_mode": "kv"}, "--router-mode is a flag of out=dyn"),
        (["in=dyn://a", "m.gguf"], {"dyn_host": "0.0.0.0"}, "no address that others can reach"),
        (["in=http", "m.gguf"], {"migration_limit": "3"}, "--migration-limit is a flag of in=dyn"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(*words, **given)


def test_an_ingress_with_a_name_for_one_pool_or_a_model_of_its_own() -> None:
    assert plan("in=http", "out=dyn://a", model_name="x").options.model_name == "x"
    assert plan("in=http", "out=dyn", "m.gguf", model_name="x", chat_template="t").options.chat_template == "t"


def test_etcd_is_the_store_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings(RunOptions()).store == "file"
    monkeypatch.setenv("ETCD_ENDPOINTS", "10.0.0.1:2379, http://10.0.0.2:2379")
    settings = read_settings(RunOptions())
    assert (settings.store, settings.etcd) == ("etcd", ("10.0.0.1:2379", "http://10.0.0.2:2379"))
    assert settings.is_cut_off  # others would be told 127.0.0.1
    assert not read_settings(RunOptions(dyn_host="10.0.0.5")).is_cut_off
    monkeypatch.setenv("ETCD_ENDPOINTS", "localhost:2379")
    assert not read_settings(RunOptions()).is_cut_off


def test_a_pool_has_no_model_of_its_own() -> None:
    chosen = plan("in=http", "out=dyn://llama3B_pool")
    assert (chosen.level, chosen.engine.argument, chosen.card.tokenizer) == ("models", "//llama3B_pool", None)
