# `make train` and `make test` need nothing before them: each creates .venv and installs what is pinned.
PYTHON ?= python3
BIN := .venv/bin
CLIENTS := .venv-clients
RUNS := runs/add_task
# Processes that run tests side by side.
JOBS ?= 2

# Networks this small gain little from a second thread, and lose everything when another program wants the core.
export OMP_NUM_THREADS ?= 1

# What the campaign's cases are drawn from.
SEED ?= 0

# What the tests' targets run: make run-tests TESTS=tests/models
TESTS ?= tests

.PHONY: train test test-all run-tests test-clients check coverage mutation campaign docs install clean

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
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu" $(TESTS)

test-all: check run-tests

run-tests: install
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu and not clients" --hypothesis-profile=full $(TESTS)

# FPTT in other programs: the examples with Lightning, Accelerate, snnTorch, statsmodels; then Lightning, Hugging Face's
# Trainer, Accelerate, skorch and ignite, and trackers, in an environment of their own, which moves no version of others.
test-clients: install $(CLIENTS)/.installed
	$(BIN)/python -m pytest -m "clients and not gpu" tests/examples
	$(CLIENTS)/bin/python -m pytest -m "clients and not gpu" tests/clients
	$(BIN)/pyright --project tests/clients

$(CLIENTS)/.installed: pyproject.toml constraints-clients.txt
	test -d $(CLIENTS) || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -c constraints-clients.txt -e '.[clients]'
	touch $@

# None is part of CI. The mutation run takes hours; it and the campaign continue where they were stopped.
coverage: install
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not slow and not gpu" $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

mutation: install
	$(BIN)/python -m tests.mutation runs/mutation

# Kills, damage, the machine's faults and hostile configurations, drawn from a seed: make campaign SEED=1
campaign: install
	$(BIN)/python -m tests.campaign runs/campaign --seed $(SEED)

clean:
	rm -rf .venv $(CLIENTS) .coverage* build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
