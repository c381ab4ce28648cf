# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs; all run as root on Debian 12 with nothing installed by hand.
PY := .venv/bin/python
SEEDS ?= 2000

.PHONY: setup demo test lint types unit packet sim sim-nightly page lab package bench fuzz install deb clean

setup:
	@./tools/setup.sh

demo: setup
	@$(PY) -m tools.demo

test: setup
	@./tools/test.sh

lint: setup
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

unit: setup
	$(PY) -m pytest -q -n 2 tests/unit

packet: setup
	$(PY) -m pytest -q -n 2 tests/packet

sim: setup
	$(PY) -m pytest -q tests/sim
	$(PY) -m tests.sim --seeds $(SEEDS)

sim-nightly: setup
	$(PY) -m tests.sim --seeds 100000 --failures 20

page: setup
	$(PY) -m pytest -q tests/page

lab: setup
	$(PY) -m pytest -q netns-lab/scenarios

package: setup
	$(PY) -m pytest -q tests/package

fuzz: setup
	$(PY) -m tests.fuzz.configuration --count 100000
	$(PY) -m tests.fuzz.datagrams --count 1000000
	$(PY) -m tests.fuzz.requests --count 50000
	$(PY) -m tests.packet.oracle --count 1000000 --seed 3

install:
	@PREFIX=$(or $(PREFIX),/usr/local) DESTDIR=$(DESTDIR) ./tools/install.sh

deb: setup
	@./tools/deb.sh

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
