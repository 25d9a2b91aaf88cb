# The two commands of the README: `make demo` and `make test`. Both can be run again cheaply.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: help demo test lint clean

help:
	@echo "make demo   set up $(VENV), build the demo bundle, run vadrun on the demo video"
	@echo "make test   set up $(VENV), run ruff, mypy, import-linter and pytest"
	@echo "make clean  remove what the demo made and the tools' caches; $(VENV) stays"

# PyTorch comes from the package index with its CUDA libraries (about 5 GB); where another index has a build
# for the CPU, name it: make demo PIP_ARGS="--index-url https://..."
$(VENV)/demo.ok: pyproject.toml
	@echo "== setting up $(VENV) for export and CPU backends (several minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[export,cpu]"
	@touch $@

$(VENV)/test.ok: pyproject.toml $(VENV)/demo.ok
	@echo "== adding the test tools to $(VENV)"
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[export,cpu,train,test]"
	@touch $@

$(DEMO)/demo.mp4 $(DEMO)/checkpoint.pth &: demo/make_demo.py vadclip/untrained.py $(VENV)/demo.ok
	@echo "== making a small untrained checkpoint and a drawn video"
	@$(BIN)/python demo/make_demo.py $(DEMO)

$(DEMO)/bundle/manifest.json: $(DEMO)/checkpoint.pth $(wildcard export/vadexport/*.py)
	@echo "== building the bundle"
	$(BIN)/vadexport build --checkpoint $(DEMO)/checkpoint.pth --dataset ucf --out $(DEMO)/bundle --force

demo: $(DEMO)/bundle/manifest.json $(DEMO)/demo.mp4
	@echo "== running the bundle on the demo video"
	$(BIN)/vadrun $(DEMO)/demo.mp4 --engine $(DEMO)/bundle --out $(DEMO)/results
	@echo "The model is untrained: it shows that everything runs, its events mean nothing."
	@echo "Scores, events and run details: $(DEMO)/results/demo/{scores.csv,events.jsonl,result.json}"

lint: $(VENV)/test.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
