# make demo   an image dataset from 96 prompts, on this machine
# make chain  prompts → pictures → targets → a student and a LoRA → pictures, measured; minutes
# make test   all tests
# make check  lint, format, types, import contracts
# make audit  known vulnerabilities of the tested versions, as far as the package index tells them
#
# PIP_ARGS goes to pip; VENV_ARGS=--system-site-packages keeps a torch that is installed already.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=
VENV_ARGS ?=
ORACLE = diffsynth==2.1.12 torchvision==0.28.0 imageio ftfy einops wcwidth

PIP = .venv/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS)

.PHONY: demo chain test check audit

demo: .venv/.installed
	.venv/bin/python -m jobs.generate --config jobs/recipes/demo.yaml
	@.venv/bin/python -m shapes.score out/demo
	@echo "pictures: out/demo/index.html   dataset: out/demo"

chain: .venv/.installed
	.venv/bin/python -m shapes.chain

test: .venv/.tested .oracle/.installed
	.venv/bin/python -m pytest $(PYTEST_ARGS)

check: .venv/.tested
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

audit: .venv/bin/python
	$(PIP) -c constraints.txt pip-audit
	.venv/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off

.venv/bin/python:
	$(PYTHON) -m venv $(VENV_ARGS) .venv
	.venv/bin/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -c constraints.txt -e .
	@touch $@

.venv/.tested: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -c constraints.txt -e ".[test]"
	@touch .venv/.installed $@

# another implementation to compare with, in a folder of its own: beside a CPU torch its torchvision
# breaks imports
.oracle/.installed: Makefile | .venv/bin/python
	$(PIP) --no-deps --target .oracle --upgrade $(ORACLE)
	@touch $@
