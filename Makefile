# `make demo` and `make test` do all of their own set-up, in .venv.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole method on a small generated world, about ten minutes on two cores"
	@echo "make test    the tests"
	@echo "make lint    formatting, lint and types"
	@echo "make format  format the code"

$(VENV)/installed: pyproject.toml constraints.txt tools/install.sh vcsoup_dist/souping/kernels/kernel.c
	tools/install.sh $(VENV)

demo: $(VENV)/installed
	$(BIN)/vcsoup demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sh tools/*.sh .ci/run

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
