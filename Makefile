# Treadle's verbs. An activated virtualenv is used as it is; otherwise `.venv` is made.
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := $(if $(wildcard $(VIRTUAL_ENV)/bin/python),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PY := $(BIN)/python
SEEDS ?= 10000

.PHONY: help install demo demo-services test check lint types imports layout unit simulate \
	bench bench-peers proto verify constraints servers clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Make the virtualenv and install Treadle with everything that development needs.
	@scripts/bootstrap "$(VENV)" dev

demo: ## Run the contact import, kill a worker in the middle, and see it finish. No server needed.
	@scripts/bootstrap "$(VENV)" worker,server,examples
	@$(PY) examples/contacts/demo.py

demo-services: servers ## The same demo on real RabbitMQ and Redis servers.
	@scripts/bootstrap "$(VENV)" worker,server,examples
	@$(PY) examples/contacts/demo.py --services

test: install servers lint types imports verify ## Run every check and the whole test suite.
	$(PY) -m pytest

check: lint types imports layout ## Run the checks that take seconds: lint, types, imports, layout.

lint: install ## Check the code with ruff.
	$(BIN)/ruff check .

types: install ## Check the types with mypy --strict.
	$(BIN)/mypy

imports: install ## Check who may import whom.
	$(BIN)/lint-imports --no-logo

layout: install ## Check the layout and the files of the repository.
	$(PY) -m pytest -q tests/test_layout.py tests/test_repository.py tests/test_compose.py

unit: install ## Run the tests that need no server and kill no process.
	$(PY) -m pytest -q -m "not redis and not rabbitmq and not kill"

simulate: install ## Run simulated schedules: SEEDS=20000 for so many, SEEDS=17..17 to replay number 17.
	$(PY) -m tests.simulation $(SEEDS)

bench: install servers ## Measure Treadle on all workloads; ARGS="--w W1,W2 --reps 1" for some of them.
	$(PY) -m benchmarks $(ARGS)

bench-peers: install servers ## Measure Treadle and other systems on the same workloads in one session (installs them first).
	$(PY) -m benchmarks.peers.install
	$(PY) -m benchmarks --peers all $(ARGS)

proto: install ## Generate the Python code of proto/treadle/v1 again.
	@scripts/protos "$(BIN)" write

verify: install ## Prove that the generated code is current and that the protos pass buf lint.
	@scripts/protos "$(BIN)" verify

constraints: ## Resolve the dependencies anew and write constraints.txt.
	@scripts/bootstrap "$(VENV)"
	$(PY) scripts/constraints.py

servers: ## Install the Redis and RabbitMQ servers that the tests start, if they are missing.
	@scripts/install-servers

clean: ## Remove caches, build output and the state of demos; .venv stays.
	rm -rf .treadle .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
