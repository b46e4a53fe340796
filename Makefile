# Two commands on an empty machine with Python 3.11 and make:  make demo   make test
PYTHON ?= python3.11
VENV ?= .venv
# A CPU build of torch keeps gigabytes of CUDA packages away; an installed torch is kept. See the README.
TORCH_SPEC ?= torch==2.13.0
RUN := $(VENV)/bin/sublora

.PHONY: demo test slow lint clean

$(VENV)/.installed: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c "import torch" 2>/dev/null || $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_SPEC)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## rank x learning rate on the shipped model; prints where the page is
	$(RUN) run rank-lr --model micro --trait otter --out runs/demo

test: $(VENV)/.tested  ## the quick tests
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

slow: $(VENV)/.tested  ## the tests that take longer
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
