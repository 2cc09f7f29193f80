# The commands of CONTRIBUTING.md. `make check` is what a change has to pass before it is pushed; CI runs .ci/run.
.PHONY: setup lint types test docs check

setup:
	pip install -e ".[dev]"

lint:
	ruff format --check .
	ruff check .
	lint-imports

types:
	mypy

test:
	pytest -n 2

docs:
	mkdocs build --strict

check: lint types test docs
