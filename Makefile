# Each target installs what it needs into .venv by itself: `make demo` the program, the others the
# development tools as well.
#
# On a Linux machine without a CUDA GPU, the CPU build of torch saves gigabytes:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PROGRAM := $(VENV)/program
SITE := $(VENV)/site
# Where the development tools are, the program is too.
RUNNABLE := $(firstword $(wildcard $(INSTALLED)) $(PROGRAM))
PIP_LOG := $(VENV)/pip.log
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile,--no-compile)
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
PACKAGES := adapters cli evaluation generation kernels methods models registry training

.DEFAULT_GOAL := help
# Two installations into one folder would meet.
.NOTPARALLEL:
.PHONY: help install demo test test-all test-anywhere test-kernels test-slow check format example pages docs kill fuzz bench clean

help:
	@echo "make demo     teach the sample dog to the miniature, and draw it"
	@echo "make install  only install, development tools too; the others do so themselves"
	@echo "make test     run the tests that any change needs"
	@echo "make test-all those, and what is long by nature; a quarter of an hour"
	@echo "make check    lint, format check, types"
	@echo "make format   format and fix what can be fixed"
	@echo "make example  build concepts.db.example again"
	@echo "make pages    run the manual's session, and renew all that pages have from the program"
	@echo "make docs     build all pages as a site, in build/docs"
	@echo "make kill     1,000 SIGKILLs over concept add, and 1,000 over all other commands"
	@echo "make fuzz     20,000 odd files of everything that is read, about an hour"
	@echo "make bench    measure registry, miniature, attention and scoring; writes bench/results"
	@echo "make test-kernels   every size of the attention kernels; half an hour on two cores"
	@echo "make test-slow      models of full size, with random weights"
	@echo "make test-anywhere  the tests as other machines would run them; hours"

install: $(INSTALLED)

$(PROGRAM): WHAT := .
$(INSTALLED): WHAT := .[dev]
$(SITE): WHAT := .[docs]

# On a terminal pip shows its own bars; elsewhere only large files and what takes long are told.
# What is never imported need not be compiled, where Python keeps what it compiles.
$(PROGRAM) $(INSTALLED) $(SITE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or newer: make PYTHON=python3.12 install")'
	@rm -f $@
	@test -x $(BIN)/pip || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch and some 50 other packages into $(VENV), which takes a minute or more"
	@pip() { $(BIN)/pip install --disable-pip-version-check $(COMPILE) \
	        --constraint constraints.txt --editable '$(WHAT)' && touch $@; }; \
	if test -t 1; then pip; else \
	    pip 2>&1 | tee $(PIP_LOG) | while read -r line; do case $$line in \
	        *Downloading*[0-9][0-9].[0-9]' MB'*|*Downloading*' GB'*) echo "$$line" ;; \
	        'Installing collected'*) echo "unpacking them" ;; \
	        *Retrying*) echo "$$line" ;; \
	    esac; done; \
	    test -e $@ || { tail -n 30 $(PIP_LOG); exit 1; }; \
	fi

demo: $(RUNNABLE)
	@$(BIN)/python demo.py

test: $(INSTALLED)
	$(BIN)/pytest $(IN_PARALLEL)

test-all: $(INSTALLED)
	$(BIN)/pytest -m 'not grid and not slow' $(IN_PARALLEL)

test-anywhere: $(INSTALLED)
	$(BIN)/python tests/anywhere.py

# The folders under their import name, for the type checker.
build/typing/conceptry: Makefile
	@rm -rf $@ && mkdir -p $@
	@for package in $(PACKAGES); do ln -s ../../../$$package $@/$$package; done

test-kernels: $(INSTALLED)
	$(BIN)/pytest tests/kernels -m grid $(IN_PARALLEL)

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

check: $(INSTALLED) build/typing/conceptry
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

example: $(INSTALLED)
	$(BIN)/python tests/example_registry.py concepts.db.example

pages: $(INSTALLED)
	@$(BIN)/python tests/manual_session.py --write
	@$(BIN)/python tests/docs_pages.py --write

docs: $(SITE)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the first page is build/docs/index.html; for its search, $(PYTHON) -m http.server -d build/docs"

kill: $(INSTALLED)
	$(BIN)/python tests/faults/kill.py --runs 1000 --json bench/results/kill.json
	$(BIN)/python tests/faults/kill_commands.py --runs 1000 --json bench/results/kill-commands.json

fuzz: $(INSTALLED)
	$(BIN)/python tests/faults/fuzz.py --cases 20000 --seed 21 --json bench/results/fuzz.json

bench: $(INSTALLED)
	$(BIN)/python bench/registry.py
	$(BIN)/python bench/miniature.py
	$(BIN)/python bench/attention.py
	$(BIN)/python bench/kernel_resources.py
	$(BIN)/python bench/evaluation.py

clean:
	rm -rf $(VENV) build *.egg-info
