# The commands of this project. Everything is set up on a fresh machine by the command that needs it.
# `make run PREBUILT=1` takes a ready-made llama.cpp instead of compiling one for this CPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PREBUILT ?=

.PHONY: run test test-slow test-browser test-gpu test-vllm test-sglang test-mistralrs test-dist test-fuzz test-chaos test-interop lint bench engine demo-model clean

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (half a minute)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "==> adding the tools for tests and linters" >&2
	@$(PIP_INSTALL) -e '.[dev,native]'
	@touch $@

engine: $(STAMP)
	@$(BIN)/llmrun engines install llamacpp $(if $(PREBUILT),--prebuilt) --if-missing >/dev/null

run: engine
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/llmrun; else $(BIN)/llmrun "What is the capital of South Africa?"; fi

test: engine $(DEV_STAMP)
	@$(BIN)/python -m pytest -m "not slow and not browser and not gpu and not vllm and not sglang and not mistralrs and not dist and not fuzz and not interop and not chaos"

test-slow: engine $(DEV_STAMP)
	@$(BIN)/python -m pytest -m slow

test-browser: engine $(DEV_STAMP)
	@$(BIN)/python -m pytest -m browser

test-gpu: engine $(DEV_STAMP)
	@$(BIN)/python -m pytest -m gpu

test-vllm: engine $(DEV_STAMP)
	@$(BIN)/llmrun engines install vllm --if-missing >/dev/null
	@$(BIN)/python -m pytest -m vllm

# Two nodes need network namespaces (root); without them that test is skipped.
test-sglang: engine $(DEV_STAMP)
	@$(BIN)/llmrun engines install sglang --cpu --if-missing >/dev/null
	@$(BIN)/python -m pytest -m sglang

test-mistralrs: engine $(DEV_STAMP)
	@$(BIN)/llmrun engines install mistralrs --if-missing >/dev/null
	@$(BIN)/python -m pytest -m mistralrs

# Real etcd and nats-server on loopback.
test-dist: $(DEV_STAMP)
	@$(BIN)/python -m pytest -m "dist and not fuzz and not interop and not chaos"

# A million mutated frames at every decoder (LLMRUN_FUZZ_FRAMES=N: as many), 100,000 over sockets (LLMRUN_FUZZ_SOCKETS=N); minutes.
test-fuzz: $(DEV_STAMP)
	@$(BIN)/python -m pytest -m fuzz -s

# Workers, etcd and NATS killed, frozen, cut off at random under load; ten minutes. CHAOS_S=N: that many seconds of faults.
test-chaos: $(DEV_STAMP)
	@$(BIN)/python -m pytest -m chaos -s

# NVIDIA Dynamo of several versions, each in an environment of its own.
DYNAMO_ENVS ?= .venv-dynamo
test-interop: $(DEV_STAMP)
	@for v in 0.4.1 0.9.1 1.0.2 1.6.1; do test -x $(DYNAMO_ENVS)/$$v/bin/python || { $(PYTHON) -m venv $(DYNAMO_ENVS)/$$v && \
	  $(DYNAMO_ENVS)/$$v/bin/python -m pip install --quiet ai-dynamo-runtime==$$v && \
	  { test $$v = 0.4.1 || { $(DYNAMO_ENVS)/$$v/bin/python -m pip install --quiet --no-deps ai-dynamo==$$v && \
	  $(DYNAMO_ENVS)/$$v/bin/python -m pip install --quiet transformers fastapi uvicorn msgspec prometheus_client pyyaml psutil; }; \
	  }; } || exit 1; done
	@DYNAMO_ENVS=$(abspath $(DYNAMO_ENVS)) $(BIN)/python -m pytest -m interop

lint: $(DEV_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: engine $(DEV_STAMP)
	@$(BIN)/python -m benchmarks

# Train the bundled demo model again (minutes). Its tools live in an environment of their own.
demo-model:
	@test -x .venv-train/bin/python || $(PYTHON) -m venv .venv-train
	@.venv-train/bin/python -m pip install --quiet torch==2.13.0 tokenizers safetensors numpy gguf
	@.venv-train/bin/python examples/train_demo_model.py --out model_cards/presets/demo

clean:
	@rm -rf $(VENV) build dist *.egg-info
