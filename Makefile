# make demo    a real run on this machine, with the dashboard on a terminal
# make test    the checks and all tests, real engines included
# make fast    the tests without real engines
# make setup   only the environment (.venv); the others call it
PYTHON ?= python3

.PHONY: demo test fast check setup

demo: setup
	@.venv/bin/rltop demo $(ARGS) || { code=$$?; [ $$code -eq 130 ] || exit $$code; }  # 130: ended by ctrl-c

test: check
	@.venv/bin/python -m pytest -n 2 $(ARGS)

fast: setup
	@.venv/bin/python -m pytest -n 2 -m "not engine" $(ARGS)

check: setup
	@scripts/check.sh

setup:
	@$(PYTHON) scripts/setup.py
