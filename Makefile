# Every target first creates .venv if it is missing or older than the pins.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Most of a short run is compilation: compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(HOME)/.cache/label_efficient_segmentation/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: demo test test-slow test-all lint docs bench
demo: $(VENV)/installed
	$(BIN)/python examples/demo.py $(ARGS)

# `loadfile` because module-scoped fixtures are expensive; tests/conftest.py puts
# the longest files first, an order that the load scope would change.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/installed
	$(PYTEST) -m slow $(ARGS)

test-all: $(VENV)/installed
	$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run_all.py $(ARGS)

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)/installed-docs: requirements-docs.lock $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r requirements-docs.lock -c requirements.lock
	touch $@
