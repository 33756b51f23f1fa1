# Everything a person or CI types. Only Python >= 3.11 and make are needed: each target first
# makes .venv from constraints.txt if it is missing or older than what it is made from.
#
#   make demo PYTHON=python3.12     uses another interpreter
#
# The kernel inside ONNX Runtime is tested in a second release of it, which is put beside the first.
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.installed
EXTRAS := all,dev,witnesses
OLDER  := 1.24.4
BARE   := kvpress  # a witness of which two files are read: without what it depends on

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-all golden golden-archive verdicts constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## train, export and validate a sparse transformer on real digits
	$(VENV)/bin/sparse-ref demo

test: $(STAMP)  ## what CI runs: lint, types, import contracts, golden files, tests
	$(VENV)/bin/python tools/check.py

quick: $(STAMP)  ## the same in about three minutes: no slow tests, no other libraries asked
	$(VENV)/bin/python tools/check.py --quick

test-all: $(STAMP)  ## the same with the slow tests
	$(VENV)/bin/python tools/check.py --all

golden: $(STAMP)  ## write the golden files again
	$(VENV)/bin/python tools/make_golden.py

golden-archive: $(STAMP)  ## golden/ as one archive, golden.tar
	$(VENV)/bin/python tools/make_golden.py --archive golden.tar

verdicts: $(STAMP)  ## judge other implementations: table and page in build/verdicts
	$(VENV)/bin/python tools/verdicts.py --json build/verdicts --html build/verdicts/index.html \
	  --markdown build/verdicts/table.md

constraints:  ## pin again: the newest of everything that pyproject.toml admits
	$(PYTHON) -m venv --clear $(VENV)-new
	$(VENV)-new/bin/python -m pip install --upgrade pip
	grep '^torch==' constraints.txt > $(VENV)-new/torch.txt
	$(VENV)-new/bin/python -m pip install --build-constraint $(VENV)-new/torch.txt \
	  hatchling build -e '.[$(EXTRAS)]'
	$(VENV)-new/bin/python -m pip install --no-deps $(BARE)
	{ sed -n '/^#/p' constraints.txt; \
	  $(VENV)-new/bin/python -m pip freeze --all --exclude-editable | sed 's/+.*//'; } > $(VENV)-new/pins.txt
	mv $(VENV)-new/pins.txt constraints.txt
	rm -rf $(VENV)-new

clean:  ## remove .venv and every cache
	rm -rf $(VENV) $(VENV)-new build dist .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) must be Python >= 3.11, got: $$($(PYTHON) --version 2>&1)." \
	    "Name another with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) from constraints.txt, once: a minute or two, plus downloads."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(VENV)/bin/python -m pip install -c constraints.txt --build-constraint constraints.txt -e '.[$(EXTRAS)]'
	$(VENV)/bin/python -m pip install --quiet --no-deps -c constraints.txt $(BARE)
	$(VENV)/bin/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/older onnxruntime==$(OLDER)
	@touch $@
