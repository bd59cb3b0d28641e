# `make` alone lists the targets. It needs Python 3.11 to 3.13 and nothing else.
#   make setup PYTHON=python3.12        use this interpreter, not the first one found
#   make setup TORCH_INDEX=<index>      take torch from this package index, e.g. the CPU index of pytorch.org
#   make reproduce SCALE=smoke CORES=1  another scale, fewer cores
#   make resume SCALE=smoke             resume a killed run of that scale, with the same cores
#   make bench QUICK=1                  small shapes, under five minutes; judges nothing
#   make bench ROWS=1,3 THREADS=1 SHAPES=paper DEVICE=cpu BASE=<commit>    some of it; BASE adds rows 9 and 10

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCALE ?= mini
CORES ?= all
PYTHON ?=
TORCH_INDEX ?=

CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
TORCH_FROM := $(VENV)/.torch-index
NEW_TORCH := $(if $(TORCH_INDEX),$(filter-out $(shell cat $(TORCH_FROM) 2>/dev/null),$(TORCH_INDEX)))

# Rules call `budgeted-lora`, which is installed in the virtual environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce resume smoke test fuzz soak bench lint figures clean force

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with the locked packages; repeat it when the lock changes

# Sets $found to the first usable interpreter, or says what is missing.
define FIND_PYTHON
for python in $(CANDIDATES); do \
    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then \
        found="$$python"; break; \
    fi; \
done; \
if [ -z "$$found" ]; then \
    echo "make setup: no Python 3.11, 3.12 or 3.13 found (tried: $(CANDIDATES));" \
         "install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 2; \
fi; \
if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
    echo "make setup: $$found lacks the venv module (Debian and Ubuntu have it in the package python3-venv)" >&2; exit 2; \
fi
endef

# Any build of torch satisfies the version in the lock, so a build that is already installed stays.
$(STAMP): requirements.lock pyproject.toml $(if $(NEW_TORCH),force)
	@if $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	    echo "using the existing $(VENV) (remove it to change its Python)"; \
	else \
	    $(FIND_PYTHON); echo "making $(VENV) with $$found"; "$$found" -m venv --clear $(VENV); \
	fi
	$(if $(NEW_TORCH),$(BIN)/python -m pip install --no-deps --force-reinstall --index-url $(TORCH_INDEX) "$$(grep '^torch==' requirements.lock)")
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@$(if $(NEW_TORCH),echo "$(TORCH_INDEX)" > $(TORCH_FROM))
	@touch $(STAMP)

reproduce: $(STAMP) ## run `snakemake main`: Tables 1, 2, 8, 9, Figure 2, Pareto plots
	$(BIN)/snakemake main --cores $(CORES) --config scale=$(SCALE)

resume: $(STAMP) ## resume a killed run, after the last of its jobs has ended
	$(BIN)/budgeted-lora resume --scale $(SCALE)

smoke: $(STAMP) ## three-minute tour: every stage end to end; its numbers mean nothing
	$(BIN)/snakemake main --cores $(CORES) --config scale=smoke

test: $(STAMP) ## run the test suite, file by file on up to four cores
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

FUZZ_SECONDS ?= 60

fuzz: $(STAMP) ## run each fuzz test for FUZZ_SECONDS=60 with examples of its own
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest $$(ls tests/*/test_fuzzed_*.py)

soak: $(STAMP) ## kill a smoke run 25 times and compare every weight and score; SEED=, KILLS=, CORES=1
	$(BIN)/python tools/soak.py $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS)) \
	    $(if $(filter-out all,$(CORES)),--cores $(CORES))

# The peers' packages, on top of those of $(VENV). Without them (no network) their lines say so and the others run.
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed
SITE = import sysconfig; print(sysconfig.get_path("purelib"))

$(BENCH_STAMP): benchmarks/requirements.txt $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(BENCH)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	    > "$$($(BENCH)/bin/python -c '$(SITE)')/project.pth"
	@if $(BIN)/python -m pip --python $(BENCH)/bin/python install --no-deps -r $<; then touch $@; \
	else echo "make bench: no peers; their lines will say so" >&2; fi

bench: $(BENCH_STAMP) ## measure speed beside peers, into benchmarks/results; QUICK=1, ROWS=1,3, see above
	$(BENCH)/bin/python -m benchmarks.run $(if $(QUICK),--quick) $(if $(ROWS),--rows $(ROWS)) \
	    $(if $(THREADS),--threads $(THREADS)) $(if $(SHAPES),--shapes $(SHAPES)) $(if $(DEVICE),--device $(DEVICE)) \
	    $(if $(BASE),--base $(BASE)) $(if $(TARGET),--target $(TARGET))

lint: $(STAMP) ## ruff, snakefmt and Snakemake's own linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

figures: ## copy the figures of the default run that docs/results.md shows from reports/mini to docs/figures
	@for name in $$(grep -oh '(figures/[A-Za-z0-9._-]*' docs/results.md | sed 's|.*/||' | sort -u); do \
	    cp "reports/mini/figures/$$name" "docs/figures/$$name" || exit 2; echo "$$name"; \
	done

environment.yml: requirements.lock ## copy the pins of requirements.lock to environment.yml
	{ sed '/- pip:/q' $@; sed -n 's/^[A-Za-z]/      - &/p' requirements.lock; } > $@.new
	mv $@.new $@

clean: ## remove build files and caches of tools; keep results and reports
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
