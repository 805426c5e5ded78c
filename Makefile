PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PLAYABLE := .venv/.playable
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
DOCS_READY := .venv/.docs-ready
# Procgen asks for numpy < 2, though it renders the same with later ones: it is installed without what it asks for.
PROCGEN := procgen-mirror gym3 gym gym-notices cffi pycparser glfw moderngl glcontext imageio-ffmpeg
# Files are run in the order that tests/conftest.py gives them.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help install demo speedrun play web wheel test test-fast test-all docs-test lint format bench gpu speedrun-gpu docs lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

# A stamp is written last, so an installation that was interrupted is repeated. Playing needs fewer packages.
$(PLAYABLE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'genie_fn needs Python 3.11 or later, which "$(PYTHON)" is not: name one with make PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

$(READY): $(PLAYABLE)
	$(PIP) -e '.[dev]'
	@if $(BIN)/python -c 'import platform, sys; sys.exit(not (sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)))'; \
	then $(PIP) --no-deps $(PROCGEN); \
	else echo 'Procgen exists for Linux x86-64 with Python 3.11 or 3.12: its games cannot be collected here' >&2; fi
	@touch $@

$(DOCS_READY): $(READY)
	$(PIP) -e '.[docs]'
	@touch $@

install: $(READY) ## create or update .venv

demo: $(READY) ## collect data, train the three stages, evaluate; run it again to go on after an interruption
	$(BIN)/genie-fn demo

speedrun: $(READY) ## the best world that 20 minutes buy; its row goes to benchmarks/records
	$(BIN)/python speedrun.py

play: $(PLAYABLE) ## play a world in the browser: the newest trained one, or the bundled one
	$(BIN)/python play.py

web: $(READY) ## write the bundled worlds as HTML files to web/, which play in a browser; needs Node.js
	@mkdir -p web
	for world in assets/worlds/*.safetensors; do \
		$(BIN)/python export_world.py --cfg.run $$world --cfg.format html \
			--cfg.output web/$$(basename $$world .safetensors).html || exit; \
	done

wheel: $(READY) ## write dist/genie_fn-*.whl: the package, its scripts as genie-fn, and the bundled worlds
	$(BIN)/python -m build --wheel

test: lint ## lint, then run the tests on all cores
	$(PYTEST) --durations 15

test-fast: $(READY) ## the tests of the models and of training, without compilation and other processes
	$(PYTEST) -m 'not (slow or compile or subprocess or gpu)' \
		tests/test_*.py tests/kernels tests/nets tests/training

test-all: lint ## the same, with the tests marked slow
	$(PYTEST) -m ''

docs-test: $(DOCS_READY) ## run every notebook of docs/tour in a fresh kernel, follow every guide of docs/how-to and every recipe of docs/your-own-data.md
	$(BIN)/python -m pytest -m '' tests/docs/test_tour.py tests/docs/test_how_to.py tests/docs/test_own_data.py

lint: $(READY) ## check style, formatting, imports, types and language
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/python tools/check_language.py

format: $(READY) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speed, and write the tables of docs/performance.md
	$(BIN)/python benchmark.py
	$(BIN)/python benchmark.py --cfg.suite table

gpu: ## on a machine with a GPU and torch: the kernels' tests on it, benchmarks, and a world, in 11 minutes
	$(PYTHON) gpu.py

speedrun-gpu: ## on a machine with a GPU and torch: the best world that 30 minutes buy, as a row and as a file
	$(PYTHON) speedrun.py --cfg.preset small --cfg.minutes 30 --cfg.levels 5000 --cfg.clips 512 \
		--cfg.tokenizer 0.35 --cfg.lam 0.13 --cfg.dynamics 0.34 --cfg.world small.safetensors

docs: $(DOCS_READY) ## build the documentation to site/index.html, strictly: broken links end it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # not --quiet, with which warnings are not counted
	@echo 'open site/index.html'

lock: $(DOCS_READY) ## write the versions that are installed to constraints.txt, from which every installation is made
	$(BIN)/python tools/lock.py

clean: ## remove .venv, caches and build outputs; data and runs stay
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './data/*' -not -path './runs/*' -prune -exec rm -rf {} +
