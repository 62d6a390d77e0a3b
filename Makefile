# One environment in .venv, from one lock. `make` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:  # two pips must not work on one environment
.PHONY: help python311 setup setup-train setup-test demo test lint format types campaigns bench bench-check gpu-check lock clean pil

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SITE := $(VENV)/lib/python3.11/site-packages
PINNED := pyproject.toml requirements.lock
# readers of exports, for the tests: without the forty packages that they would bring, and out of the way of ours
JUDGES := nerfstudio==1.1.5 jaxtyping==0.3.11 wadler-lindig==0.1.8

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(VENV)/.run pil  ## Make .venv with all that rendering needs (no torch)
	@echo "ready: $(BIN)/lvsm-data --help"

setup-train: $(VENV)/.train pil  ## The same, and torch for training

setup-test: $(VENV)/.test pil  ## The same, and all that `make test` needs

demo: setup  ## Render 24 objects (under two minutes on 2 cores) and make a page that shows them
	@$(BIN)/lvsm-data render --n 24 --res 64 --out data/demo
	@$(BIN)/lvsm-data view data/demo
	@echo
	@echo "shards:        $(CURDIR)/data/demo/64/"
	@echo "contact sheet: $(CURDIR)/data/demo/index.html (open it in a browser)"

# a thousand processes of the tests import the same modules: compiled once, also where the environment says not to keep that
test: export PYTHONDONTWRITEBYTECODE :=
# One process more than there are cores, since tests wait for what they start.
test: setup-test lint types  ## Lint, types and tests: what CI runs
	@$(BIN)/python --version
	@processes=$$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))'); \
	$(BIN)/python -m pytest -n $$processes --dist loadscope --no-loadscope-reorder

lint: setup-test  ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup-test  ## Put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup-test  ## Check types
	@$(BIN)/mypy

campaigns: setup-test  ## Run the long test campaigns
	@$(BIN)/python -m pytest -m campaign

bench-check: setup-test  ## Has rendering become slower or noisier? Two minutes, against stored ratios
	@$(BIN)/python benchmarks/render.py --repeats 3 --reference-views 2 --check benchmarks/baseline.json

bench: setup-test  ## Run the benchmarks
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

gpu-check:  ## Is the trainer right and quick on this GPU? Eight minutes, gpu-check.json; without a GPU a tiny version
	@python=$(BIN)/python; test -x "$$python" || python=python3; "$$python" benchmarks/gpu_check.py $(ARGS)

# torch moves by hand alone: edit its line in requirements.lock, then `make lock`. What torch pins itself stays out.
lock:  ## Renew requirements.lock from the ranges in pyproject.toml
	@rm -rf build/lock && python=$$($(MAKE) -s python311) && "$$python" -m venv build/lock
	@build/lock/bin/pip install -q --dry-run --ignore-installed --report build/lock/report.json \
		'.[train,test]' "$$(grep '^torch==' requirements.lock)"
	@grep '^#' requirements.lock > build/lock/new
	@build/lock/bin/python -c 'import json, sys; \
		[print(i["metadata"]["name"] + "==" + i["metadata"]["version"]) for i in json.load(sys.stdin)["install"]]' \
		< build/lock/report.json | sed 's/+.*//' | tr _ - | LC_ALL=C sort -f \
		| grep -viE '^(lvsm-data|pillow|nvidia.*|cuda.*|triton)==' >> build/lock/new
	@mv build/lock/new requirements.lock && rm -rf build/lock

clean:  ## Remove .venv, caches and build leftovers; data/ stays
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './data/*' -prune -exec rm -rf {} +

$(VENV)/.run: $(PINNED)
	@$(call install,run,.)
	@touch $@

$(VENV)/.train: $(PINNED)
	@$(call install,run,.[train])
	@touch $(VENV)/.run $@

$(VENV)/.test: $(PINNED)
	@$(call install,run test,.[train$(,)test])
	@rm -rf $(VENV)/judges && $(BIN)/pip install -q --no-deps --target $(VENV)/judges $(JUDGES)
	@touch $(VENV)/.run $(VENV)/.train $@

, := ,
# $(1): what for, see pipeline/system.py; $(2): the project with its optional groups
define install
	python=$$($(MAKE) -s python311); \
	"$$python" -m pipeline.system build $(1); \
	test -x $(BIN)/pip || "$$python" -m venv $(VENV); \
	echo "installing packages into $(VENV) (bpy alone is 0.3 GB; minutes on the first time)"; \
	$(BIN)/pip install -q -c requirements.lock -e '$(2)'; \
	$(MAKE) --no-print-directory pil; \
	$(BIN)/pip check; \
	$(BIN)/lvsm-data doctor
endef

# Prints the path of a Python 3.11: $(PYTHON), or else one that uv finds or brings, since Ubuntu 24.04 and macOS have no
# package of it. uv itself comes from the path or, into build/, from PyPI.
python311:
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
		command -v $(PYTHON); exit; \
	fi; \
	echo "'$(PYTHON)' is not Python 3.11: asking uv for it" >&2; \
	PATH=$$PATH:$(CURDIR)/build/uv/bin; \
	command -v uv >/dev/null || { python3 -m venv build/uv && build/uv/bin/pip install -q uv; } >&2 || true; \
	command -v uv >/dev/null && { uv python find --system 3.11 2>/dev/null || \
		{ uv python install 3.11 >&2 && uv python find --system 3.11; }; } || { \
		echo "Python 3.11 is needed (bpy has wheels for no other), and uv (https://docs.astral.sh/uv) did not bring it." >&2; \
		echo "next step: apt-get install python3.11 python3.11-venv python3.11-dev (Debian 12), or pyenv install 3.11;" >&2; \
		echo "           if it is there under another name: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; }

# pillow and pillow-simd own the same PIL folder, and whichever comes last overwrites the other. Plain pillow, whoever
# pulled it in, is taken out and pillow-simd put back; so is a PIL folder that an uninstall has emptied. Costs nothing
# where all is well, so every setup looks. (pillow-simd exists for x86 alone.)
pil:
	@test "$$(uname -m)" = x86_64 || exit 0; \
	plain=$$(compgen -G '$(SITE)/[Pp]illow-[0-9]*.dist-info' || true); \
	if [ -n "$$plain" ] || [ ! -e $(SITE)/PIL/Image.py ]; then \
		echo "putting pillow-simd back in place of plain pillow"; \
		test -z "$$plain" || $(BIN)/pip uninstall -q -y pillow; \
		$(BIN)/pip install -q --force-reinstall --no-deps -c requirements.lock pillow-simd; \
	fi
