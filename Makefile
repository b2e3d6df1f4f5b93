# make demo    a real run on this machine, with the dashboard
# make test    static checks and all tests, those on real engines included
# make fast    the tests without real engines
# make check   static checks
# make docs    the generated pages of docs/
# make sbom    a software bill of materials of .venv: build/sbom.json (CycloneDX)
# make lock    renews requirements/test.txt, the exact releases and hashes of .venv, after a change of requirements
# make audit   asks the package index for locked releases that were withdrawn since
# make setup   the environment (.venv); the other targets call it
PYTHON ?= python3

.PHONY: demo test fast check docs sbom lock audit setup

demo: setup
	@.venv/bin/rltop demo $(ARGS) || { code=$$?; [ $$code -eq 130 ] || exit $$code; }  # 130: ctrl-c

test: check
	@.venv/bin/python -m pytest -n 2 $(ARGS)

fast: setup
	@.venv/bin/python -m pytest -n 2 -m "not engine" $(ARGS)

check: setup
	@scripts/check.sh

docs: setup
	@.venv/bin/python scripts/docs.py

sbom: setup
	@.venv/bin/python scripts/sbom.py build/sbom.json

lock: setup
	@.venv/bin/python -m scripts.lock

audit: setup
	@.venv/bin/python -m scripts.lock --check

setup:
	@$(PYTHON) scripts/setup.py
