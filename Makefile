# `make demo` and `make test` are all a fresh machine needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# A file's tests share programs and finished runs, so one worker takes them all, in this order.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint docs bench

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/.test-installed: .venv/.installed
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

.venv/.lint-installed: .venv/.installed
	$(BIN)/pip install --quiet -e '.[lint]'
	touch $@

.venv/.docs-installed: .venv/.installed
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@

demo: .venv/.installed
	$(BIN)/python launch.py --config=configs/sam_cifar.py:quick

test: .venv/.test-installed
	$(PYTEST)

test-fast: .venv/.test-installed
	$(PYTEST) -m "not slow"

lint: .venv/.lint-installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

# Looks at the sources alone, and asks nothing of a network. A link that leads nowhere is an error.
docs: .venv/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "site/index.html is the start page; to search as well: $(BIN)/python -m http.server -d site"

# Side by side with the peers, which need torch: an environment of its own, and half an hour.
benchmarks/.venv/.installed: pyproject.toml benchmarks/requirements.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/pip install --quiet --upgrade pip
	benchmarks/.venv/bin/pip install --quiet -r benchmarks/requirements.txt -e .
	touch $@

bench: benchmarks/.venv/.installed
	benchmarks/.venv/bin/python benchmarks/run.py
