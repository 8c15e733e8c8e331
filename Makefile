# What a clone can do. `make run` and `make test` need Python 3.11 or later and make, nothing else; the first call makes
# .venv and installs into it, every later one needs no network.

PYTHON ?= python3
VENV := .venv
PINS := constraints.txt
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# A relative path in the environment is taken from the folder where make was called. Notebooks run in notebooks/, so it
# is made absolute here. With `make -C` that folder is the caller's, not make's (make then has the flag w).
called_from := $(if $(findstring w,$(firstword -$(MAKEFLAGS))),$(PWD),$(CURDIR))
absolute = $(if $(filter /%,$(firstword $(1))),$(1),$(called_from)/$(1))

ifneq ($(strip $(CRACK_PHOTOS)),)
override CRACK_PHOTOS := $(call absolute,$(CRACK_PHOTOS))
export CRACK_PHOTOS
endif
ifneq ($(strip $(DENOISE_DATA)),)
override DENOISE_DATA := $(call absolute,$(DENOISE_DATA))
export DENOISE_DATA
endif
# A Vision Transformer may be a folder or a name on the Hub.
ifneq ($(strip $(DENOISE_VIT)),)
ifneq ($(shell test -d "$(call absolute,$(DENOISE_VIT))" && echo folder),)
override DENOISE_VIT := $(call absolute,$(DENOISE_VIT))
run test: export HF_HUB_OFFLINE ?= 1
endif
export DENOISE_VIT
else
run test: export HF_HUB_OFFLINE ?= 1
endif

# Live trainings in notebooks: shorter when nobody watches.
run test: export LIVE_SECONDS ?= 20

NOTEBOOKS := $(wildcard notebooks) --nbval-lax --nbval-current-env --nbval-cell-timeout=600

.PHONY: help run test lab app notebooks html train readme test-oldest test-newest clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'

$(INSTALLED): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, and $(PYTHON) is" \
	  "$$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; on Linux torch brings some gigabytes)"
	$(PY) -m pip install $(if $(CI),-q) --disable-pip-version-check -e '.[dev]' -c $(PINS)
	@touch $@

run: $(INSTALLED)  ## execute all notebooks into build/ and print the results table
	$(PY) -m lab.notebooks run $(ARGS)

# One pytest for unit tests, docstring examples and notebooks, so that its last line counts everything. The notebooks
# on photographs are tests/test_photographs.py, which runs where CRACK_PHOTOS is set; all others never see it.
test: $(INSTALLED)  ## unit tests, notebook tests, browser tests (ARGS="-k name" for some of them)
	$(PY) -m pytest tests surfaces helpers app lab $(NOTEBOOKS) $(ARGS)

lab: $(INSTALLED)  ## JupyterLab in notebooks/
	cd notebooks && ../$(PY) -m jupyterlab --ip=127.0.0.1

# Voila opens no browser here: only the address that it prints holds the token that it asks for.
app: $(INSTALLED)  ## the explorer alone, as a page: open the address that this prints (ARGS=--port=8900)
	cd app && ../$(PY) -m voila explorer.ipynb --Voila.ip=127.0.0.1 --token --no-browser --show_tracebacks=True $(ARGS)

notebooks: $(INSTALLED)  ## re-execute the committed notebooks in place and clean them (ARGS=01 for one)
	env -u CRACK_PHOTOS $(PY) -m lab.notebooks save $(ARGS)

html: $(INSTALLED)  ## pages in build/html/, without executing anything
	$(PY) -m lab.notebooks html $(ARGS)

train: $(INSTALLED)  ## train the shipped denoisers, going on where the last call stopped (ONLY="unet conv" for some)
	$(PY) -m lab.train $(if $(ONLY),--only $(ONLY))

readme: $(INSTALLED)  ## write the numbers in README.md from data/results/
	$(PY) -m lab.readme

# Do the bounds in pyproject.toml hold? The unit tests with the lowest versions they allow, and with the newest there
# are; each in a .venv of its own under build/.
UNIT := NOTEBOOKS= CRACK_PHOTOS= ARGS="--ignore=tests/test_browser.py $(ARGS)"

test-oldest:  ## the unit tests with the lowest versions that pyproject.toml allows
	@mkdir -p build
	sed -n 's/^.*"\([A-Za-z0-9_-]*\)>=\([0-9.]*\),<.*/\1==\2.*/p' pyproject.toml > build/oldest.txt
	$(MAKE) --no-print-directory test $(UNIT) VENV=build/venv-oldest PINS=build/oldest.txt

test-newest:  ## the unit tests with the newest versions that pyproject.toml allows
	@mkdir -p build
	@touch build/newest.txt
	$(MAKE) --no-print-directory test $(UNIT) VENV=build/venv-newest PINS=build/newest.txt

clean:  ## remove what runs and tests left (not .venv, not unfinished trainings)
	rm -rf build data/cache .pytest_cache .ruff_cache .hypothesis *.egg-info notebooks/.ipynb_checkpoints
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
