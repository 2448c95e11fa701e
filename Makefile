# Each target goes from a bare clone to its result: it makes .venv, installs with constraints.txt, and runs.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
MINUTES ?= 5
SEED ?= 0
QUARTO := $(shell sed -n 's/^quarto-cli==//p' constraints.txt)

.PHONY: help demo test lab notebooks docs images readme weights bench package clean
help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s ':'

.venv/bin/python:
	$(PYTHON) -m venv .venv
.venv/.base: .venv/bin/python settings.ini setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[eval]'
	@touch $@
.venv/.dev: .venv/bin/python settings.ini setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.base

demo: .venv/.base ## train both stages, draw samples, evaluate them
	$(BIN)/ldm_demo --out $(OUT) --minutes $(MINUTES) --seed $(SEED)
test: .venv/.dev ## every chapter as a test, then pytest
	$(BIN)/nbdev_test
	$(BIN)/python -m pytest -n auto --dist loadfile
lab: .venv/.dev ## JupyterLab on the chapters, trusted, so that their films play (in a container, as root, add LAB=--allow-root)
	$(BIN)/jupyter trust nbs/*.ipynb
	$(BIN)/jupyter lab nbs/index.ipynb $(LAB)
notebooks: .venv/.dev ## run all chapters at lesson size and keep their outputs; then the README
	$(BIN)/python tools/run_notebooks.py $(CHAPTERS)
	$(BIN)/python tools/make_readme.py
readme: .venv/.dev ## README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py
docs: .venv/.dev ## the site, in _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo 'make docs: the program quarto is missing. Get version $(QUARTO) from https://quarto.org/docs/download, or: $(BIN)/pip install -c constraints.txt quarto-cli' >&2; exit 1; }
	$(BIN)/python tools/make_readme.py # newer than the index, or nbdev_docs would write another
	$(BIN)/nbdev_docs
images: .venv/.base ## the site's icon and card, from the shipped model
	$(BIN)/python tools/make_images.py
weights: .venv/.dev ## train what the package ships again (five hours on 2 cores; needs the full Fashion-MNIST)
	$(BIN)/python tools/make_weights.py
bench: .venv/.dev ## how good in five minutes and how fast, against diffusers and against this machine (three quarters of an hour)
	$(BIN)/python bench/peers.py
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/conv_peak.py
	$(BIN)/python bench/evaluation.py
	$(BIN)/python bench/steps.py
	$(BIN)/python bench/memory.py
package: .venv/.dev ## build wheel and sdist, install the wheel in an empty environment, sample and run every chapter without network
	bash tools/try_package.sh
clean:           ## remove what the targets made, but not runs/
	rm -rf .venv _docs _proc build dist *.egg-info
