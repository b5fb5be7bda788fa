PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup models lint types tests test demo bench clean

# torch first and pinned: an unpinned resolve would fetch the CUDA build
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0 numpy
	$(PIP) -e '.[demo,plots,dev]'
	touch $@

# real model code for the matcher's tests; timm and torchvision would pull another torch
.venv/models: .venv/ready
	$(PIP) '.[models]'
	$(PIP) --no-deps timm==1.0.31 torchvision==0.28.0
	touch $@

setup: .venv/ready
models: .venv/models

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy

tests: .venv/models
	$(BIN)/python -m pytest -q

test: .venv/models lint types tests

demo: .venv/ready
	$(BIN)/attnpass tune digits --effort quick --max-drop 0.02 --out demo

bench: .venv/ready
	$(BIN)/python benchmarks/digits.py

clean:
	rm -rf .venv build *.egg-info demo
