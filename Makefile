# make help explains the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKLOAD ?= resnet50
DATA ?= $(if $(filter fasterrcnn,$(WORKLOAD)),data/mini-weather,data/mini.h5)
RANKS ?= 2
NODES ?= 3
FUZZ_SECONDS ?= 30
SLURM ?= $(HOME)/.cache/hpcai500/slurm
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint type unit bench horovod slurm-up slurm-down docs fuzz clean

help:  ## Show this list
	@echo "make TARGET [VARIABLE=VALUE]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: PYTHON ($(PYTHON), 3.11 or later), VENV ($(VENV)), WORKLOAD ($(WORKLOAD); or fasterrcnn), DATA ($(DATA)), RANKS ($(RANKS)), NODES ($(NODES)), SLURM ($(SLURM))"

run: $(VENV)/.installed-run $(DATA)$(if $(filter fasterrcnn,$(WORKLOAD)),/statistics.json)  ## Train the mini size of WORKLOAD twice on 2 ranks, assemble the submission and verify it
	$(BIN)/hpcai500 submit --workload $(WORKLOAD) --size mini --level free --data $(DATA) --ranks $(RANKS) \
		--set communicator=mpi $(RUN_OPTIONS)

data/mini.h5: | $(VENV)/.installed-run
	$(BIN)/hpcai500 data prepare mini --output $@

data/mini-weather/statistics.json: | $(VENV)/.installed-run
	$(BIN)/hpcai500 data prepare mini-weather --output $(@D)

test: $(VENV)/.installed-test horovod lint type unit  ## Install what tests need, then run ruff, mypy and pytest

lint: $(VENV)/.installed-test  ## Check style and layout with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-test  ## Check types with mypy
	$(BIN)/mypy

unit: $(VENV)/.installed-test  ## Run the tests, two at a time; TESTS="tests/test_x.py -k word" chooses among them
	$(BIN)/python -m pytest -n 2 $(TESTS)

horovod: $(VENV)/.installed-test  ## Build Horovod once into ~/.cache/hpcai500 and install it
	tools/build_horovod.sh $(VENV)

slurm-up:  ## Start a Slurm cluster of NODES virtual nodes on this machine (as root); its folder: SLURM
	tools/install_debian_packages.sh
	tools/slurm_cluster.py --folder $(SLURM) up --nodes $(NODES) --gpus 2

slurm-down:  ## End that cluster
	tools/slurm_cluster.py --folder $(SLURM) down

bench: $(VENV)/.installed-test horovod  ## Measure benchmarks/table.rst (half an hour on two cores, with nothing else running)
	$(BIN)/python benchmarks/all.py

docs: $(VENV)/.installed-test  ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W -q docs docs/_build/html

fuzz: $(VENV)/.installed-test  ## Look for bugs of the verifier with made-up input, FUZZ_SECONDS long; what is found is kept as crash-*
	$(BIN)/python tools/fuzz_reader.py -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 -timeout=10
	$(BIN)/python tools/fuzz_reader.py --judge -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 -timeout=10

clean:  ## Remove the virtual environment and caches; data and runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache docs/_build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hpcai500 needs Python 3.11 or later and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.installed-run: setup.cfg setup.py constraints.txt | $(BIN)/python
	@echo "installing hpcai500 into $(VENV) (torch is large: this can take some minutes)"
	$(INSTALL) --editable '.[mpi]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-run tools/install_debian_packages.sh
	tools/install_debian_packages.sh
	$(INSTALL) --editable '.[mpi,dali,compression,leaderboard,dev,docs]'
	@touch $@
