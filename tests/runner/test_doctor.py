"""doctor: one finding a thing, a next step for each warning, no secret, no crash."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from runner import doctor, doctor_checks
from runner.doctor_checks import CHECKS, Check


def _found(capsys: pytest.CaptureFixture[str], *checks: str) -> dict[str, dict[str, str]]:
    chosen = [getattr(doctor_checks, f"check_{name}") for name in checks]
    assert doctor.run(as_json=True, checks=chosen) == 0
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_every_check_answers_and_every_warning_has_a_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(as_json=True) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"llmrun", "python", "cpu", "memory", "gpu", "compiler", "hub token", "port 8080", "terminal"} <= {
        finding["name"] for finding in findings
    }
    assert len({finding["name"] for finding in findings}) == len(findings)
    for finding in findings:
        assert finding["status"] in ("ok", "warn")
        assert finding["detail"] and (finding["status"] == "ok" or finding["next_step"]), finding


def test_the_token_is_told_and_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _found(capsys, "hub")["hub token"]["detail"].startswith("none")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = _found(capsys, "hub")
    assert found["hub token"]["detail"] == "present"
    assert "hf_secret" not in json.dumps(found)


def test_offline_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert _found(capsys, "hub")["hub access"]["status"] == "warn"


def test_a_taken_port_is_a_warning_with_another_port(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor_checks, "_PORTS", (port,))
        found = _found(capsys, "ports")[f"port {port}"]
    assert found["status"] == "warn"
    assert str(port + 1) in found["next_step"]


def test_a_machine_without_a_compiler_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--prebuilt" in _found(capsys, "compiler")["compiler"]["next_step"]


def test_a_broken_nvidia_smi_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'driver not loaded' >&2; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = _found(capsys, "gpu")["gpu"]
    assert (found["status"], "driver not loaded" in found["detail"]) == ("warn", True)


def test_a_check_that_fails_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def check_moon() -> list[Check]:
        raise OSError("too far")

    assert doctor.run(checks=[check_moon, lambda: [Check("earth", "ok", "here")]]) == 0
    text = capsys.readouterr().out
    assert "moon" in text and "too far" in text and "earth" in text


def test_the_names_are_the_functions() -> None:
    assert all(check.__name__.startswith("check_") for check in CHECKS)
