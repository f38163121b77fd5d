# Two commands do everything on a fresh machine: `make calibrate` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per test process: two processes share two cores.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist worksteal -q

.PHONY: calibrate test test-all quick lint bench clean

calibrate: $(VENV)/.base  ## set up, then calibrate the shipped pipeline
	$(BIN)/calibri calibrate

test: lint  ## lint, types, import order and the suite
	$(PYTEST) -m "not end_to_end"

test-all: lint  ## the same with what takes long from end to end
	$(PYTEST)

quick: $(VENV)/.dev  ## the suite without its slow tests
	$(PYTEST) -m "not slow and not end_to_end"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## reference procedure against ours, on this machine
	$(BIN)/python -m benchmarks

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
