"""The variables of credentials and TLS: what is refused when they are read, and what of them stands in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.net.credentials import bare_url, read_etcd_login, read_nats_login, split_url
from runner.net.settings import NetSettings, read_settings
from runner.options import RunOptions

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        (f"nats://me:{SECRET}@host:4222", "nats://host:4222"),
        (f"tls://{SECRET}@host", "tls://host"),
        (f"me:{SECRET}@host:2379", "host:2379"),
        (f"nats://me:{SECRET}@@@host,nats://you:{SECRET}/x@[::1]:1", "nats://host,nats://[::1]:1"),
    ],
)
def test_a_url_in_a_message_has_no_password(url: str, bare: str) -> None:
    assert bare_url(url) == bare


def test_a_user_in_a_url() -> None:
    assert split_url("http://me:a:b@host:1") == ("http://host:1", "me", "a:b")
    assert split_url("host:1") == ("host:1", "", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ETCD_AUTH_USERNAME": "me"}, "ETCD_AUTH_USERNAME is set and ETCD_AUTH_PASSWORD is not"),
        ({"ETCD_AUTH_PASSWORD": SECRET}, "ETCD_AUTH_PASSWORD is set and ETCD_AUTH_USERNAME is not"),
        ({"ETCD_AUTH_CLIENT_KEY": "k"}, "ETCD_AUTH_CLIENT_KEY is set and ETCD_AUTH_CLIENT_CERT is not"),
        ({"ETCD_AUTH_CA": "/not/there"}, "ETCD_AUTH_CA: '/not/there' cannot be used: No such file"),
        ({"ETCD_AUTH_CA": f"-----BEGIN {SECRET}"}, "ETCD_AUTH_CA: its PEM text cannot be used"),
        ({"NATS_AUTH_USERNAME": "me"}, "NATS_AUTH_USERNAME is set and NATS_AUTH_PASSWORD is not"),
        ({"NATS_AUTH_NKEY": f"SU{SECRET}"}, "NATS_AUTH_NKEY is no seed of a user"),
        ({"NATS_AUTH_CREDENTIALS_FILE": "/not/there"}, "'/not/there' cannot be read: No such file"),
        ({"NATS_TLS_CLIENT_CERT_PATH": "/not/there"}, "NATS_TLS_CLIENT_CERT_PATH: '/not/there' cannot be used"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        read_settings(RunOptions(store="etcd"))
    assert message in str(caught.value) and SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_no_credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.creds"
    path.write_text(SECRET)
    monkeypatch.setenv("NATS_AUTH_CREDENTIALS_FILE", str(path))
    with pytest.raises(UsageError, match="no user JWT with its seed") as caught:
        read_nats_login()
    assert SECRET not in str(caught.value)


def test_no_record_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ETCD_AUTH", "NATS_AUTH"):
        monkeypatch.setenv(f"{name}_USERNAME", "me")
        monkeypatch.setenv(f"{name}_PASSWORD", SECRET)
    assert read_etcd_login().password == SECRET and SECRET in str(read_nats_login().arguments)
    assert SECRET not in repr(read_etcd_login()) and SECRET not in repr(read_nats_login())


def test_plain_http_where_tls_was_set_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import certifi

    monkeypatch.setenv("ETCD_AUTH_CA", certifi.where())
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://me:{SECRET}@host:2379")
    with pytest.raises(UsageError, match=r"http://host:2379 has no TLS"):
        read_settings(RunOptions())
    monkeypatch.setenv("ETCD_ENDPOINTS", "host:2379")
    assert read_settings(RunOptions()).etcd == ("host:2379",)


def test_everything_binds_loopback_unless_told() -> None:
    assert (
        read_settings(RunOptions()).host == "127.0.0.1" and NetSettings(store="file", folder=Path()).host == "127.0.0.1"
    )
