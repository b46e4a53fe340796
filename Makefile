# Two commands on an empty machine with Python 3.11 or later and make:  make demo   make test
# The newest python3 on the PATH from 3.11 on; PYTHON=... takes another one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
# A CPU build of torch keeps gigabytes of CUDA packages away; an installed torch is kept. See the README.
TORCH_SPEC ?= torch==2.13.0
# Everything else is installed in the versions that were tested together.
TESTED ?= -c requirements-tested.txt
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := $(VENV)/bin/sublora
# The tests of what depends on transformers and peft, for versions that were not tested together.
MODEL_TESTS := tests/test_gate.py tests/test_sample.py tests/test_measure.py tests/test_chat.py tests/test_pack.py \
	tests/test_steer.py tests/test_token_classes.py tests/test_teacher.py

.PHONY: demo test docs slow test-real lint newest oldest clean

$(VENV)/.installed: pyproject.toml requirements-tested.txt
	test -n "$(PYTHON)" || { echo "There is no Python 3.11 or later on the PATH; give PYTHON=/path/to/python3."; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH_SPEC)
	$(PIP) $(TESTED) -e ".[gguf]"
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) $(TESTED) -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## rank x learning rate on the shipped model; prints where the page is
	$(RUN) run rank-lr --model micro --trait otter --out runs/demo

test: $(VENV)/.tested  ## the quick tests
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

slow: $(VENV)/.tested  ## the tests that take longer
	$(VENV)/bin/python -m pytest -m slow

test-real: $(VENV)/.tested  ## what a real chat model does; SUBLORA_TEST_MODELS=FOLDER keeps it for the next time
	$(VENV)/bin/python -m pytest -m real -rs

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/.installed  ## the site into site/, an error for every warning
	$(PIP) $(TESTED) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict -q

newest:  ## the model-facing tests on the newest versions that pyproject.toml admits
	$(MAKE) edge VENV=$(VENV)-newest TESTED=
	$(VENV)-newest/bin/python -m pip install --quiet -e ".[inspect,notebook]"
	$(VENV)-newest/bin/python -m pytest tests/test_export.py  # Inspect wants an older fsspec than the tested one

oldest:  ## the same on the oldest
	$(MAKE) edge VENV=$(VENV)-oldest TESTED="-c requirements-oldest.txt"

edge: $(VENV)/.installed
	$(PIP) $(TESTED) "pytest>=8,<10" "pytest-xdist>=3.5,<4" "hypothesis>=6.100,<7"
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(MODEL_TESTS)

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest .pytest_cache .ruff_cache .hypothesis
