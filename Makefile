# `make demo` and the tests do all of their own set-up, in .venv.
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in so many processes: make test WORKERS=8. By default two compute, while one mostly waits
# for Slurm.
WORKERS ?= 3
PYTEST := -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder

.PHONY: help demo test test-fast test-long test-hosts test-lowest lint format
.DEFAULT_GOAL := help

help:
	@echo "make demo         the whole method on a small generated world, about ten minutes on two cores"
	@echo "make test         the tests, on real Ray, real ZeRO-3 ranks and real checkpoints"
	@echo "make test-fast    those that load no model and start no process"
	@echo "make test-long    those that make test leaves out: many kills, many sizes of a disk"
	@echo "make test-hosts   those on several hosts with a network file system between them (as root)"
	@echo "make test-lowest  the tests with the lowest versions that pyproject.toml allows"
	@echo "make lint         formatting, lint and types"
	@echo "make format       format the code"

$(VENV)/installed: pyproject.toml constraints.txt tools/install.sh vcsoup_dist/souping/kernels/kernel.c
	tools/install.sh $(VENV)

demo: $(VENV)/installed
	$(BIN)/vcsoup demo

test: $(VENV)/installed
	$(BIN)/python $(PYTEST) -m "not (long or hosts)"

test-fast: $(VENV)/installed
	$(BIN)/python $(PYTEST) -m "not (models or processes or ranks or ray or slurm or kills or long or hosts)"

test-long: $(VENV)/installed
	$(BIN)/python $(PYTEST) -m "long or hosts"

test-hosts: $(VENV)/installed
	$(BIN)/python -m pytest -m "hosts and not long"

$(VENV)-lowest/installed: pyproject.toml tools/install.sh vcsoup_dist/souping/kernels/kernel.c
	tools/install.sh $(VENV)-lowest lowest

test-lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/python $(PYTEST) -m "not (long or hosts)"

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sh tools/*.sh .ci/run

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
