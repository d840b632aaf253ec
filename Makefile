# `make train` and `make test` need nothing before them: each creates .venv and installs what is pinned.
PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/add_task

# Networks this small gain little from a second thread, and lose everything when another program wants the core.
export OMP_NUM_THREADS ?= 1

.PHONY: train test test-all check docs install clean

install: .venv/.installed

# The constraints pin everything, torch to a build that needs no GPU; pyproject.toml itself allows ranges.
.venv/.installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

train: install
	$(BIN)/fptt-dist train configs/add_task.yaml run.dir=$(RUNS)/fptt resume=auto
	$(BIN)/fptt-dist train configs/add_task.yaml algorithm=bptt run.dir=$(RUNS)/bptt resume=auto
	$(BIN)/fptt-dist report $(RUNS)/fptt $(RUNS)/bptt --out $(RUNS)/report.html

# The site, in site/; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: check
	$(BIN)/python -m pytest -m "not gpu"

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
