# make demo | test | check | gpu | lab | bench | lock | clean        (README.md, CONTRIBUTING.md)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# from the weights of the kit and from random ones, with the labels of four patients
DEMO := nbs/30_seg_tune.ipynb train_patients=4 random_start=True epochs=36

SHELL := bash
.PHONY: demo test check gpu lab bench setup lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock setup.py settings.ini
	@test -n "$(PYTHON)" || { echo "no python3.11 and no python3 on the PATH: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f'mirage_nb needs Python 3.11 or later, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## tune a segmentation model on phantoms, to an executed report
	$(BIN)/python -m mirage_nb.runs $(DEMO)

check: setup  ## the fast part of the tests, while modules, lint and types are checked beside it
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; export TMPDIR="$$scratch" OMP_NUM_THREADS=1; \
	$(BIN)/python tests/check.py > "$$scratch/static.txt" 2>&1 & checks=$$!; \
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile; failed=$$?; \
	wait $$checks || failed=1; cat "$$scratch/static.txt"; exit $$failed

test: setup  ## everything: checks and a demo on fewer phantoms beside the tests, then the notebooks; one scratch folder, removed at the end
	@scratch=$$(mktemp -d); export TMPDIR="$$scratch" MIRAGE_RUNS="$$scratch/runs" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=; set -e; \
	trap 'kill $$demo $$checks 2> /dev/null || true; rm -rf "$$scratch"' EXIT; mkdir "$$MIRAGE_RUNS"; \
	$(BIN)/python tests/check.py > "$$scratch/static.txt" 2>&1 & checks=$$!; \
	$(BIN)/python tests/small_data.py "$$scratch/data"; \
	MIRAGE_DATA="$$scratch/data" $(BIN)/python -m mirage_nb.runs $(DEMO) > "$$scratch/demo.txt" 2>&1 & demo=$$!; \
	$(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile --no-loadscope-reorder; \
	wait $$checks || { cat "$$scratch/static.txt"; exit 1; }; cat "$$scratch/static.txt"; \
	wait $$demo || { cat "$$scratch/demo.txt"; exit 1; }; cat "$$scratch/demo.txt"; \
	MIRAGE_DATA="$$scratch/data" $(BIN)/nbdev_test --n_workers 2

gpu: setup  ## tests and benchmark of a GPU
	$(BIN)/python -m pytest -q --gpu tests/test_gpu.py
	$(BIN)/python -m benchmarks gpu

lab: setup  ## JupyterLab on the project
	$(BIN)/jupyter lab --notebook-dir=.

bench: setup  ## speed, each beside a plain PyTorch version
	$(BIN)/python -m benchmarks

lock: setup  ## newest versions that settings.ini allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 setup.py --extra dev --upgrade --refresh \
	  --no-header --no-annotate --no-emit-find-links --no-emit-index-url --output-file requirements.lock

clean:  ## what make made, runs excepted
	rm -rf $(VENV) build *.egg-info
