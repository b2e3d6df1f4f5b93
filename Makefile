# make demo    a real run on this machine, with the dashboard
# make test    static checks and all tests, those on real engines included
# make fast    the tests without real engines
# make check   static checks
# make docs    the generated pages of docs/
# make setup   the environment (.venv); the other targets call it
PYTHON ?= python3

.PHONY: demo test fast check docs setup

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

setup:
	@$(PYTHON) scripts/setup.py
