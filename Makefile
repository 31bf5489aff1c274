# The commands of this project. Everything is set up on a fresh machine by the command that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PREBUILT ?=

.PHONY: run test lint bench engine demo-model clean

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (half a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

engine: $(STAMP)
	@$(BIN)/llmrun engines install llamacpp $(if $(PREBUILT),--prebuilt) --if-missing

run: engine
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/llmrun; else $(BIN)/llmrun "What is the capital of South Africa?"; fi

test: engine
	@$(BIN)/python -m pytest -m "not slow and not browser and not gpu"

test-slow: engine
	@$(BIN)/python -m pytest -m slow

test-browser: engine
	@$(BIN)/python -m pytest -m browser

test-gpu: engine
	@$(BIN)/python -m pytest -m gpu

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: engine
	@$(BIN)/python -m benchmarks

# Train the bundled demo model again (minutes). Its tools live in an environment of their own.
demo-model:
	@test -x .venv-train/bin/python || $(PYTHON) -m venv .venv-train
	@.venv-train/bin/python -m pip install --quiet torch==2.13.0 tokenizers safetensors numpy gguf
	@.venv-train/bin/python examples/train_demo_model.py --out model_cards/presets/demo

clean:
	@rm -rf $(VENV) build dist *.egg-info
