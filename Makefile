# Needs git, make and any Python 3. Everything else is installed into this folder.
SHELL := /bin/sh
TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
VENV := $(or $(UV_PROJECT_ENVIRONMENT),.venv)
PYTHON := $(VENV)/bin/python
export UV_PYTHON_PREFERENCE ?= system
# Many tests wait for timeouts and for servers: one more at a time than there are processors.
export PYTEST_XDIST_AUTO_NUM_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN || echo 1) + 1)
# gunicorn reads this variable itself, before our settings, and crashes over a blank one.
NO_BLANK := [ -n "$$WEB_CONCURRENCY" ] || unset WEB_CONCURRENCY

.DEFAULT_GOAL := help
.PHONY: help install run serve test soak soak-http check lint types migrations schema release format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# uv where it is missing: by venv, else by pip, else by its own installer. A bare Debian python3 has neither of the first two.
$(TOOLS)/bin/uv:
	@echo "Installing uv into $(TOOLS)/ …"
	@rm -rf $(TOOLS)
	@{ python3 -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'; } >$(TOOLS).log 2>&1 \
	  || { rm -rf $(TOOLS); mkdir -p $(TOOLS)/bin; python3 -m pip install --quiet --disable-pip-version-check --target $(TOOLS)/lib 'uv>=0.9' >>$(TOOLS).log 2>&1 \
	       && ln -s ../lib/bin/uv $(TOOLS)/bin/uv; } \
	  || { rm -rf $(TOOLS); python3 -c "import urllib.request as u; print(u.urlopen('https://astral.sh/uv/install.sh').read().decode())" 2>>$(TOOLS).log \
	       | UV_UNMANAGED_INSTALL=$(CURDIR)/$(TOOLS)/bin sh >>$(TOOLS).log 2>&1; }
	@test -x $@ || { cat $(TOOLS).log; echo "uv could not be installed; see https://docs.astral.sh/uv/"; exit 1; }
	@rm -f $(TOOLS).log

install: $(UV) ## Install what the service and its tests need, as locked
	@$(UV) sync --frozen --quiet || $(UV) sync --frozen --quiet --python '>=3.12'

run: install ## Migrate, seed and serve on 127.0.0.1:8000, and print how to use it
	@$(PYTHON) manage.py prepare_development
	@$(NO_BLANK); exec $(PYTHON) -m gunicorn -c deploy/gunicorn.conf.py

serve: ## The production server alone, configured by the environment
	@$(PYTHON) manage.py collectstatic --noinput --verbosity 0
	@$(NO_BLANK); exec env MALLOC_ARENA_MAX=2 $(PYTHON) -m gunicorn -c deploy/gunicorn.conf.py

test: install ## The tests but for the drills, which start servers and browsers
	$(PYTHON) -m pytest -n auto -m "not drill"

soak: install ## A few minutes of faults, retries and kills; says at the end whether anything was lost
	$(PYTHON) -m tests.soak $(SOAK)

soak-http: install ## Ten ordinary minutes with uploads and Litestream (or MINUTES=1); judges times, memory, log and copy
	$(PYTHON) -m tests.soak --ordinary --minutes $(or $(MINUTES),10) $(SOAK)

check: install lint types migrations schema-check ## Everything that CI runs; on PostgreSQL too if TEST_DATABASE_URL says where
	env -u TEST_DATABASE_URL $(PYTHON) -m pytest -n auto
	@if [ -n "$$TEST_DATABASE_URL" ]; then $(PYTHON) -m pytest -n auto -m "not own_database"; \
	elif [ -n "$$CI" ]; then echo "CI must also test on PostgreSQL: TEST_DATABASE_URL is not set."; exit 1; \
	else echo "Not tested on PostgreSQL. To do so: TEST_DATABASE_URL=postgres://user:password@host/name make check"; fi

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/shellcheck .ci/run deploy/*.sh tests/deploy/*.sh
	PATH="$(abspath $(VENV))/bin:$$PATH" jactionlint --strict-exit
	$(VENV)/bin/zizmor --offline --quiet .github

types:
	$(PYTHON) -m mypy

migrations:
	$(PYTHON) manage.py makemigrations --check --dry-run

schema: install ## Write docs/api/openapi.yaml and .json anew
	$(PYTHON) manage.py export_openapi

.PHONY: drawings
drawings: install ## Draw docs/architecture anew, from the code
	$(PYTHON) manage.py draw_architecture

.PHONY: schema-check
schema-check:
	$(PYTHON) manage.py export_openapi --check
	$(PYTHON) manage.py draw_architecture --check

release: install ## Date the top entry of CHANGELOG.md, commit and tag
	@deploy/release.sh

format: install ## Format the code
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## Remove what was installed and made, but no data
	rm -rf .venv $(TOOLS) staticfiles .pytest_cache .mypy_cache .ruff_cache
