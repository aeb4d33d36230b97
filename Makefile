# Every target makes its own environment, .venv/, if there is none (requirements/README.md).
BIN := .venv/bin
ENGINE ?= $(if $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null)),gpu,cpu)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c $(FITS) 2>/dev/null && echo $$p && break; done)
FITS := 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
PIP := $(BIN)/python -m pip install -qq --no-deps
PINS = .venv/pins-$(ENGINE)
TORCH_CPU := https://download.pytorch.org/whl/cpu
TESTS := -n auto --dist loadfile --no-loadscope-reorder --durations=15
.PHONY: help env demo test test-long check format bench clean
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
env: $(PINS)-ready  ## make .venv/ for this machine; ENGINE=cpu|gpu and PYTHON=... choose otherwise
$(BIN)/python: ;
$(PINS): requirements/$(ENGINE).txt requirements/torch-cpu.txt $(BIN)/python
	@$(PYTHON) -c $(FITS) || { echo "no Python 3.11 to 3.13 with venv: apt install python3-venv, or make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "making .venv with the pins of requirements/$(ENGINE).txt: about two minutes"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@[ $(ENGINE) = gpu ] || $(PIP) -r requirements/torch-cpu.txt 2>/dev/null || \
	{ echo "torch from $(TORCH_CPU)"; $(PIP) -r requirements/torch-cpu.txt --index-url $(TORCH_CPU); }
	@$(PIP) -r requirements/$(ENGINE).txt && touch $@
$(PINS)-ready: $(PINS) pyproject.toml
	@$(PIP) --no-build-isolation -e . && touch $@
demo: env  ## a real cascade on this machine, in minutes
	$(BIN)/ray-judge demo $(ARGS)
test: env  ## all tests that this machine can run, one file per core at a time
	$(BIN)/pytest $(TESTS) -m "not long" $(ARGS)
test-long: env  ## the slow proofs at full size
	$(BIN)/pytest $(TESTS) -m long $(ARGS)
check: env  ## format, lint, types, directions of import
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
format: env  ## put the source into its form
	$(BIN)/ruff format . && $(BIN)/ruff check --fix-only .
bench: env  ## phase A against bare vLLM; decoding; the journal; phase B against the allowed rate
	$(BIN)/python benchmarks/judge_stage.py $(ARGS) && $(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/journal.py && $(BIN)/python benchmarks/rates.py
clean:  ## remove the environment and all caches
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis demo-run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
