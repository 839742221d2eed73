# Everything is installed into .venv. Needed: Python 3.11, make and a package registry.

PYTHON ?= python3.11
BIN := .venv/bin
DEMO := demo
DEMO_ENV := DAGSTER_HOME=$(CURDIR)/$(DEMO)/dagster_home BORING_INPUT_DIR=$(CURDIR)/$(DEMO)/input \
	BORING_OUTPUT_DIR=$(CURDIR)/$(DEMO)/output BORING_MODEL=boring-tiny
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
# --no-compile: Python compiles a module when it is imported; most modules of these packages never are.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# One more than there are cores: end-to-end tests wait for Dagster's daemon much of their time. `worksteal` keeps
# the tests of a file together, with the fixtures that they share, until a worker has nothing left to do.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
# `make test-newest-dagster` has its own environment.
NEWEST := .venv-newest/bin/python

.PHONY: demo dev search test test-all test-newest-dagster docs screenshots lint clean bench torture

demo: .venv/installed $(DEMO)/input
	@$(DEMO_ENV) $(BIN)/boring-assets embed $(DEMO)/input $(DEMO)/output
	@echo
	@echo 'Search for "two red circles":'
	@$(DEMO_ENV) $(BIN)/boring-assets search "two red circles" $(DEMO)/output --limit 3
	@echo
	@echo "  make dev     the same partitions in the Dagster UI, http://localhost:3000"
	@echo "  make search  a page to search in, http://localhost:8100"

dev: .venv/installed $(DEMO)/input
	$(DEMO_ENV) $(BIN)/boring-assets register
	$(DEMO_ENV) $(BIN)/dagster dev -w workspace.yaml

search: .venv/installed $(DEMO)/input
	@$(DEMO_ENV) $(BIN)/boring-assets serve $(DEMO)/output

# Whatever a change can break: formatter, linter, types, imports, documents, and all tests that are not `heavy`.
test: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SITE) --quiet
	$(BIN)/python $(PYTEST) -m "not heavy and not soak"

# The tests that `make test` leaves out: other ways to deploy (a `dg` project, an empty dagster.yaml, two daemons, two
# devices, Ray, containers, PostgreSQL), other clouds, a browser, torture, the documents' commands.
test-all: .venv/installed-test .venv/azurite
	$(BIN)/python $(PYTEST) -m "heavy and not soak"

# The tests of what Dagster can change, with the newest Dagster that installs; everything else as in constraints.txt.
test-newest-dagster:
	@test -x $(NEWEST) || $(PYTHON) -m venv .venv-newest
	@grep -v '^dagster' constraints.txt > .venv-newest/constraints.txt
	@$(NEWEST) -m pip install --quiet --no-compile --disable-pip-version-check --upgrade \
		-c .venv-newest/constraints.txt -e '.[test]'
	$(NEWEST) -m pip list | grep '^dagster'
	$(NEWEST) $(PYTEST) -m "not heavy and not soak" tests/instance tests/assets tests/e2e tests/test_sensors.py tests/test_checks.py

# Builds the documents as a site, in site/.
docs: .venv/installed-test
	$(SITE)

# Takes the screenshots of the documents. Needs Chromium.
screenshots: .venv/installed-test
	$(BIN)/python -m docs.screenshots

# Compares with other ways to embed the same shards; docs/performance.md says how to read it.
bench: .venv/installed-test
	$(BIN)/python -m benchmarks.end_to_end

# Lost machines, crashes, storage faults, a long run and hostile input; docs/reliability.md has the figures. An hour or more.
torture: .venv/installed-test
	$(BIN)/python -m pytest -m soak
	@failed=0; for part in crashes s3_faults soak hostile; do \
		$(BIN)/python -m torture.$$part || failed=1; \
	done; exit $$failed

lint: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Sample shards in the three layouts of img2dataset, each with some images broken on purpose.
$(DEMO)/input: | .venv/installed
	@mkdir -p $(DEMO)
	@rm -rf $(DEMO)/.input
	@$(BIN)/boring-assets sample-data $(DEMO)/.input/webdataset --format webdataset --num-shards 2 --broken 4
	@$(BIN)/boring-assets sample-data $(DEMO)/.input/files --format files --num-shards 2 --broken 4 --seed 1
	@$(BIN)/boring-assets sample-data $(DEMO)/.input/parquet --format parquet --num-shards 2 --broken 4 --seed 2
	@mv $(DEMO)/.input $(DEMO)/input

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time this takes minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) -e '.[search]'
	@touch $@

.venv/installed-test: .venv/installed
	@echo "Installing what the tests need; the first time this takes minutes."
	@$(PIP) -e '.[test]'
	@touch $@

# The emulator of Azure's storage comes from npm.
.venv/azurite: | .venv/installed
	@npm install --silent --no-audit --no-fund --prefix $@ azurite@3.35.0

clean:
	rm -rf $(DEMO) .venv .venv-newest build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
