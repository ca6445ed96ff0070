# Needs Python 3.11 to 3.13, make and git; everything else is installed into .venv.
PYTHON ?= python3

.PHONY: run test check slow bench contract pages docs

run: .venv/.installed
	.venv/bin/fusionkit run recipes/breast_rfn.yaml

test: .venv/.installed-dev
	.venv/bin/pytest

slow: .venv/.installed-dev
	FUSIONKIT_SLOW=1 .venv/bin/pytest -m slow

# some 8 minutes on an idle machine; writes bench/results/ and docs/performance.png
bench: .venv/.installed
	.venv/bin/python bench/run.py
	.venv/bin/python bench/figure.py

# docs/contract.md, from the docstrings of the conformance kit's checks
contract: .venv/.installed
	.venv/bin/python -m fusionkit.testing.contract > docs/contract.md.new
	mv docs/contract.md.new docs/contract.md

# what docs/ has of the code: the contract, the command line, the components' options, the public names
pages: contract
	.venv/bin/python docs/generate.py

# the site, into site/; works without network, and any dead link or anchor ends it
docs: .venv/.installed-dev
	.venv/bin/python -m properdocs build --strict --quiet

check: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# the version is asked first: a .venv made with a Python that is too old would stay
.venv/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("make: Python 3.11 to 3.13 is needed (%s.%s given). Say: make PYTHON=python3.12" % v)'
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	touch $@

.venv/.installed: pyproject.toml | .venv/.created
	.venv/bin/pip install --quiet -e .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/.created
	.venv/bin/pip install --quiet -e '.[dev]'
	touch $@ .venv/.installed
