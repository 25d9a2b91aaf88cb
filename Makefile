# The two commands of the README: `make demo` and `make test`. Both can be run again cheaply.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: help demo demo-model test pythons fuzz mutants lint clean

help:
	@echo "make demo   set up $(VENV), build the demo bundle, run vadrun on the demo video"
	@echo "            CHECKPOINT=FILE [DATASET=ucf] VIDEO=FILE: the same with your own"
	@echo "make demo-model   make the demo's model and video anew (two hours); SIZE=small: the way there, in minutes"
	@echo "make test   set up $(VENV), run ruff, mypy, import-linter and pytest"
	@echo "make pythons   install the wheel on Python 3.10 to 3.13, and with the lowest versions; score the demo video"
	@echo "make fuzz   10,000 damaged and hostile files to every reader (make test: 600 of them); FUZZ_SEED=N: others"
	@echo "make mutants   small faults in the code: how many do its tests notice? MUTANTS='gate metrics': of these modules"
	@echo "make clean  remove what the demo made and the tools' caches; $(VENV) stays"

# PyTorch comes from the package index with its CUDA libraries (about 5 GB); where another index has a build
# for the CPU, name it: make demo PIP_ARGS="--index-url https://..."
$(VENV)/demo.ok: pyproject.toml
	@echo "== setting up $(VENV) for export and CPU backends (several minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[export,cpu,demo]"
	@touch $@

$(VENV)/test.ok: pyproject.toml $(VENV)/demo.ok
	@echo "== adding the test tools to $(VENV)"
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[export,cpu,demo,train,calibrate,test]"
	@touch $@

# A checkpoint and a video of your own: make demo CHECKPOINT=model_ucf.pth DATASET=ucf VIDEO=door.mp4
CHECKPOINT ?= demo/checkpoint.safetensors
VIDEO ?= demo/demo.mp4
DATASET ?=
ifeq ($(VIDEO),demo/demo.mp4)
TRUTH := --truth demo/truth.csv
endif

# vadrun's exit code 1 is a damaged video: what there is of it is shown.
demo: $(VENV)/demo.ok
	@echo "== building the bundle of $(CHECKPOINT)"
	$(BIN)/vadexport build --checkpoint "$(CHECKPOINT)" $(if $(DATASET),--dataset $(DATASET)) --out $(DEMO)/bundle --force
	@echo "== running the bundle on $(VIDEO)"
	$(BIN)/vadrun "$(VIDEO)" --engine $(DEMO)/bundle --out $(DEMO)/results || test $$? -eq 1
	$(BIN)/python demo/picture.py "$(VIDEO)" $(DEMO)/results $(TRUTH)

# How demo/checkpoint.safetensors and demo/demo.mp4 are made: about two hours on two cores. SIZE=small goes the same way
# in minutes, to see that it can be gone here; its model knows nothing, and demo/ is left alone.
SIZE ?= standard
ifeq ($(SIZE),standard)
WORLD := build/world
MODEL := demo
else ifeq ($(SIZE),small)
WORLD := build/world-small
MODEL := $(WORLD)/demo
STILLS := --count 400
CLIP := --epochs 1
else
$(error SIZE is $(SIZE): give small or standard)
endif
demo-model: $(VENV)/test.ok
	@mkdir -p $(WORLD) $(MODEL)
	$(BIN)/python -m vadclip.world.stills $(STILLS) --out $(WORLD)/stills
	$(BIN)/python -m vadclip.world.clip $(CLIP) --stills $(WORLD)/stills --out $(WORLD)/clip.safetensors
	$(BIN)/python -m vadclip.world --size $(SIZE) --out $(WORLD)/videos
	$(BIN)/vadclip extract $(WORLD)/videos/train.csv $(WORLD)/videos/test.csv \
		--encoder $(WORLD)/clip.safetensors --out $(WORLD)/features --batch 32
	$(BIN)/vadclip train --list $(WORLD)/features/train.csv --clip $(WORLD)/clip.safetensors \
		--classes demo/classes.yaml --recipe paper --batch 32 --lr 3e-4 --epochs 5 --select last --seed 4 --out $(WORLD)/run
	$(BIN)/vadclip evaluate $(WORLD)/run/best.safetensors --list $(WORLD)/features/test.csv \
		--annotations $(WORLD)/videos/annotations.csv --classes demo/classes.yaml --pictures --out $(WORLD)/report --force
	$(BIN)/python demo/compact.py $(WORLD)/run/best.safetensors $(MODEL)/checkpoint.safetensors
	$(BIN)/python demo/make_video.py $(MODEL)

lint: $(VENV)/test.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2

# Those of 3.10 to 3.13 that pyenv or PATH has; PYTHONS="3.12 3.13" for others.
PYTHONS ?= 3.10 3.11 3.12 3.13
pythons: $(VENV)/test.ok
	$(BIN)/python -m tests.pythons --pythons $(PYTHONS)

# The inputs of a seed are always the same; a failure names the reader and the number of the input.
fuzz: $(VENV)/test.ok
	FUZZ_INPUTS=$${FUZZ_INPUTS:-10000} $(BIN)/python -m pytest tests/test_fuzz.py

# mutmut is no part of the tests. Results lie in build/mutants; a second run tries only what survived.
MUTANTS ?=
mutants: $(VENV)/test.ok
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[mutants]"
	$(BIN)/python -m tests.mutants $(MUTANTS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
