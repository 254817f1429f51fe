# Everything runs in .venv, made on first use from the pins in constraints.txt. Needs Python 3.11 or later, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
STARTED := $(shell date +%s)
DEMO_SECONDS := 225
RECIPES := $(addprefix recipe-,images text translation speech tabular)

.PHONY: help demo train peers papers test test-all test-hosts lint docs wide transfer features recipes $(RECIPES) overhead accuracy imports scaling torture fuzz checkpoint soak clean

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## a race and a training on 200 images, on this machine: at most 4 minutes, with the installation
	@left=$$(($(DEMO_SECONDS) - $$(date +%s) + $(STARTED))); [ $$left -gt 75 ] || left=75; [ $$left -lt 165 ] || left=165; \
	$(BIN)/heptane demo --out $(OUT) --budget $${left}s

train: $(VENV)/.demo ## train a small ResNet on Fashion-MNIST with the recommended tricks for 4 epochs: minutes
	$(BIN)/heptane train --data fashion-mnist --fallback digits --model resnet --epochs 4 --progressive-size 20 --tricks recommended --out runs/train --force

test: lint ## lint, types and the fast tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not hosts"

test-all: lint ## all tests, also slow ones and those for a GPU, with coverage
	$(BIN)/python -m pytest -m "not gpu" --cov=heptane --cov-report=term --cov-fail-under=95
	$(BIN)/python -m pytest -m gpu -rs

test-hosts: $(VENV)/.dev ## two and three hosts, simulated by network namespaces; skipped without root and ip
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hosts -rs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.dev ## generate the pages that come from docstrings and result files
	$(BIN)/python docs/build.py

wide: $(VENV)/.dev ## Fashion-MNIST with the wide ResNet, 3 seeds: benchmarks/results/wide.json
	$(BIN)/python benchmarks/accuracy.py wide

accuracy: $(VENV)/.dev ## the training of make train, 3 seeds: benchmarks/results/small.json
	$(BIN)/python benchmarks/accuracy.py small

scaling: $(VENV)/.dev ## two workers compared with one, and predictions with throttled links (root): benchmarks/results/scaling*.json
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/scaling_model.py

torture: $(VENV)/.dev ## 200 runs killed at random moments and resumed, compared with an uninterrupted run: benchmarks/results/torture.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py

fuzz: $(VENV)/.dev ## 10,000 mutated files and 10,000 sets of flags: benchmarks/results/fuzz.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py

checkpoint: $(VENV)/.dev ## the cost of a checkpoint: benchmarks/results/checkpoint.json
	$(BIN)/python benchmarks/checkpoint.py

soak: $(VENV)/.dev ## memory over an hour with two workers, checkpoints and resumes: benchmarks/results/soak.json
	$(BIN)/python benchmarks/soak.py

imports: $(VENV)/.dev ## the time to import heptane after torch: benchmarks/results/imports.json
	$(BIN)/python benchmarks/imports.py

features: $(VENV)/.dev ## the speed-up by a feature cache: benchmarks/results/features.json
	$(BIN)/python benchmarks/features.py

transfer: $(VENV)/.recipes ## ImageNet weights compared with training from scratch on 1,000 images: benchmarks/results/transfer.json, transfer_time.json
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/transfer_time.py

recipes: $(RECIPES) ## a training program per task; one by one: recipe-images, -text, -translation, -speech, -tabular: docs/recipes.md

$(RECIPES): recipe-%: $(VENV)/.recipes
	$(BIN)/python recipes/$*.py

peers: .venv-peers/.done ## time to a target compared with other libraries: benchmarks/results/peers.json; hours, resumable
	KERAS_BACKEND=torch .venv-peers/bin/python benchmarks/peers/race.py

papers: $(VENV)/.dev ## the papers' claims in miniature: benchmarks/results/papers-*.json and .svg
	for name in lr_scaling one_cycle mixup label_smoothing mixed_precision labels; do $(BIN)/python benchmarks/papers/$$name.py || exit 1; done

overhead: .venv-peers/.done ## step time compared with other loops: benchmarks/results/overhead.json
	.venv-peers/bin/python benchmarks/overhead.py

clean: ## remove everything that the other targets created
	rm -rf $(VENV) .venv-peers runs build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is needed (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[digits,pretrained,tables]'
	-$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null  # on all cores, as pip does not; else each command starts 10 s later where Python may not write its cache
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[digits,pretrained,tables,dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.recipes: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[digits,pretrained,tables,dev,recipes]'
	@touch $@

.venv-peers/.done: benchmarks/peers.txt constraints.txt
	@$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt --editable .
	.venv-peers/bin/python -m pip install --quiet --no-deps mosaicml mosaicml-cli
	@touch $@
