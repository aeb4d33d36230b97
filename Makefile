# Every target makes its own environment, .venv/, if there is none (requirements/README.md).

BIN := .venv/bin
ARGS ?=
export PYTHON ENGINE

.PHONY: help env demo test check format bench pins clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## make .venv/, or nothing if it is there and current
	@sh requirements/environment.sh

demo: env  ## a real cascade on this machine, in minutes
	$(BIN)/ray-judge demo $(ARGS)

test: env  ## all tests that this machine can run, one file per core at a time
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

check: env  ## format, lint, types, directions of import
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## put the source into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

bench: env  ## phase A against bare vLLM; decoding; the journal; phase B against the allowed rate
	$(BIN)/python benchmarks/judge_stage.py $(ARGS)
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/journal.py
	$(BIN)/python -m benchmarks.rates

pins:  ## resolve requirements/*.txt anew
	@sh requirements/environment.sh pins

clean:  ## remove the environment and all caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache demo-run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
