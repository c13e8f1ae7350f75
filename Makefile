# Two commands set everything up, each in a .venv of its own making: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and by version: a range would let pip choose another build than the one that is wanted here
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo "make demo    train on digits, convert to four engines, prove, measure, write demo/report/index.html"
	@echo "make test    lint, type-check and run all tests"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove what the demo made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.all: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	@touch $@

$(VENV)/.dev: $(VENV)/.all
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.all
	$(BIN)/python examples/demo.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf demo
