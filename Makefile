# One verb per chore: a newcomer and CI type the same thing. `make help` lists the verbs.
# All paths are relative, so the project may live in a folder whose name has spaces.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers suit two cores; `make test JOBS=0` runs everything in one process.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest
DEMO := build/demo
ZOO := timm==1.0.31 pytorchcv==0.0.74
BUDGET ?=
BENCH_DEMO := build/bench/digits
BENCH_DIGITS = --model "$(BENCH_DEMO)/digits.onnx" --data "$(BENCH_DEMO)/train.npz" --test "$(BENCH_DEMO)/test.npz" --effort quick --no-flip --preprocess unit --finetune-min-steps 100 --evaluations 16 --other-budgets 0.5

STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup dist demo test slow zoo coverage check format docs bench bench-parts clean distclean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv with everything installed (the two packages editable)

# The stamp is written last: a setup that was cut short is taken up again by the next call.
$(STAMP): requirements.lock setup.py runtime/setup.py
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python %d.%d found, 3.10 or newer is needed: make setup PYTHON=python3.11" % sys.version_info[:2])'
	test -x "$(BIN)/pip" || "$(PYTHON)" -m venv --clear "$(VENV)"
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet -r requirements.lock
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --use-pep517 --no-build-isolation --no-deps -e ./runtime -e .
	@touch "$(STAMP)"

dist: setup  ## both packages as wheels and source archives in dist/, checked for an index
	rm -rf dist
	"$(BIN)/python" -m build --no-isolation --outdir dist .
	"$(BIN)/python" -m build --no-isolation --outdir dist runtime
	"$(BIN)/python" -m twine check --strict dist/*

demo: setup  ## train a small CNN on digits in clutter, convert it in closed form, measure what came out (BUDGET=0.4 for another)
	rm -rf "$(DEMO)"
	OMP_WAIT_POLICY=PASSIVE "$(BIN)/python" examples/digits.py --out "$(DEMO)"
	"$(BIN)/s2d-convert" "$(DEMO)/digits.onnx" --data "$(DEMO)/train.npz" --out "$(DEMO)/out" --effort instant --seed 0 --no-flip --preprocess unit $(if $(BUDGET),--budget $(BUDGET))
	@echo 'Digits that nothing has seen: $(BIN)/s2d evaluate $(DEMO)/out --data $(DEMO)/test.npz'

test: setup  ## the tests that need minutes
	$(PYTEST) -n $(JOBS) -m "not slow"

slow: setup zoo  ## the tests that need longer
	$(PYTEST) -m slow

zoo: setup  ## full-size architectures for the sweep, in build/zoo (without torchvision, which nothing here needs)
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --upgrade --target build/zoo huggingface_hub safetensors pyyaml requests
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --upgrade --no-deps --target build/zoo $(ZOO)

coverage: zoo  ## sweep over them and write docs/coverage.md (takes an hour or two)
	OMP_NUM_THREADS=1 "$(BIN)/python" tests/support/zoo/sweep.py
	"$(BIN)/python" tests/support/zoo/sweep.py --page

check: setup  ## ruff (rules and layout) and mypy --strict
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

format: setup  ## let ruff lay out the code and mend what it can
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

docs: setup  ## write tables and pictures anew: docs/operators.md from the code, README and docs/results.md from benchmarks/results
	"$(BIN)/python" tests/support/operators_page.py --write
	"$(BIN)/python" -m benchmarks.publish

# What the packages want is here already (earlyon's own networks want torchvision, its core does not). Where one cannot be
# installed, its rows say so.
bench: setup  ## every method beside every other: MODEL=, DATA=, TEST=, BENCH="options"; handwritten digits without
	"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --no-deps torch-pruning==1.6.1
	-"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --no-deps onnxsim==0.8.1
	-"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --no-deps earlyon==0.3.0
	test -n "$(MODEL)" || test -e "$(BENCH_DEMO)/digits.onnx" || "$(BIN)/python" examples/digits.py --out "$(BENCH_DEMO)"
	"$(BIN)/python" -m benchmarks.compare --out build/bench/run $(if $(MODEL),--model "$(MODEL)" --data "$(DATA)" $(if $(TEST),--test "$(TEST)"),$(BENCH_DIGITS)) $(BENCH)

bench-parts: setup  ## what the parts cost: loading, splitting, the dispatcher, one file, predictions
	@set -e; for part in parts dispatcher single profile; do echo "== $$part"; "$(BIN)/python" -m "benchmarks.bench_$$part"; done

clean:  ## remove what was built, keep .venv
	rm -rf build dist runtime/build runtime/dist ./*.egg-info runtime/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf "$(VENV)"
