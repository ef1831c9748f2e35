# Every habit is a target here; .ci/run calls these and nothing else.
.DEFAULT_GOAL := help

# `make run ADDRESS=127.0.0.1:0 DATABASE=sqlite:///data/other.db`
ADDRESS = 127.0.0.1:50051
DATABASE = sqlite:///data/caseload.db
# The first of these that will do makes .venv.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11

BIN := .venv/bin
INSTALLED := .venv/installed
PIP_INSTALL := pip install --quiet --disable-pip-version-check --root-user-action ignore
AUDIT := .tools/audit
BENCH := .tools/bench
DEPLOY := .tools/deploy
GATEWAY := .tools/gateway
PEERS := .tools/peers
PROTO := .tools/proto
PYRIGHT := .tools/pyright
# protobuf-grpcio, from the oldest that the client accepts to the newest.
CLIENT_PAIRS := 4.25.8-1.60.2 5.29.5-1.66.2 6.31.1-1.70.0 6.33.2-1.80.0 7.36.2-1.85.1
GO_VERSION := 1.26.1
GRPCURL_VERSION := v1.9.4
SPICEDB_VERSION := v1.56.2
OPENFGA_VERSION := v1.22.1
# The checkout's tools come before the machine's, for the tests too.
export PATH := $(CURDIR)/.tools/bin:$(PATH)
# Some targets call others by name, and two of those must not make the same file at once.
.NOTPARALLEL:
# With this variable, each process that a test starts would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{ printf "%-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(INSTALLED) ## set up .venv: hash-checked requirements and the project, editable
	@:

.PHONY: run
run: export DATABASE := $(DATABASE)
run: $(INSTALLED) ## serve on ADDRESS from DATABASE until Ctrl-C
	@echo "try: $$(test -x .tools/bin/grpcurl && echo .tools/bin/)grpcurl -plaintext" \
		"-d '{\"therapist\": {\"display_name\": \"Ada Roe\"}}'" \
		"$(ADDRESS) caseload.v1.TherapistService/CreateTherapist"
	@command -v grpcurl >/dev/null || echo 'grpcurl is not installed: make grpcurl'
	@mkdir -p -m 700 data && exec $(BIN)/caseload serve --address $(ADDRESS) --database "$$DATABASE" --drain-seconds 0

.PHONY: example
example: $(INSTALLED) ## the tour of the API, against the server of `make run`
	@exec $(BIN)/python client_example.py

.PHONY: test
test: $(INSTALLED) ## run the tests, except the slow ones
	@$(BIN)/python -m $(PYTEST) -m 'not slow' --ignore=tests/deploy

.PHONY: fresh-test
fresh-test: ## run, the example and test on a bare Debian, made for it (SUITE= names another); as root on Debian, needs debootstrap
	@tests/fresh_machine.sh

.PHONY: test-processes
test-processes: $(INSTALLED) $(BENCH)/installed grpcurl-where-go gateway-where-go artifacts ## run the slow tests: whole processes, crashes, failover, hostile callers, fuzz, wheels, docs
	@$(BIN)/python -m $(PYTEST) -m slow --ignore=tests/deploy

.PHONY: check
check: lint types proto-check ## lint, types and proto-check

.PHONY: lint
lint: $(INSTALLED) ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: format
format: $(INSTALLED) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format

.PHONY: types
types: $(INSTALLED) $(PYRIGHT)/installed ## mypy --strict, and pyright on what callers see
	@$(BIN)/mypy --strict service/caseload_server client/caseload client_example.py tests benchmarks docs
	@$(PYRIGHT)/bin/basedpyright --pythonpath $(BIN)/python --level error

.PHONY: proto
proto: $(PROTO)/installed ## rewrite generated/ from protos/
	@rm -f generated/caseload/v1/*_pb2*.py*
	$(call generate,generated)

# Everything is compared in a folder of its own, so a check never changes the checkout.
.PHONY: proto-check
proto-check: $(PROTO)/installed ## fail when generated/ is stale, a comment is missing, or callers of the last release would break
	@rm -rf .proto-check && mkdir -p .proto-check/generated
	$(call generate,.proto-check/generated)
	@diff -r --brief --exclude=py.typed --exclude=__pycache__ .proto-check/generated generated || \
		{ echo 'generated/ is not what protos/ makes: run make proto' >&2; exit 1; }
	@$(BIN)/buf lint generated/caseload/v1/caseload.binpb
	@$(BIN)/buf breaking generated/caseload/v1/caseload.binpb --against protos/baseline.binpb
	@rm -rf .proto-check

# protos/baseline.binpb is the contract of the last release, which proto-check holds ours against. Renew it when a
# release is tagged, never to make proto-check pass.
.PHONY: proto-baseline
proto-baseline: $(PROTO)/installed ## at a release: take protos/ as the contract that later ones must not break
	@$(PROTOC) --include_imports -o protos/baseline.binpb $(PROTOS)

.PHONY: artifacts
artifacts: $(PROTO)/installed ## write the contract into dist/: .proto files, a descriptor set and, where Go is, OpenAPI
	@rm -rf dist/caseload-protos-* && mkdir -p $(CONTRACT) && cp -R LICENSE protos/caseload client/caseload/client/service_config.json $(CONTRACT)
	@for file in $(GOOGLE_PROTOS); do mkdir -p "$(CONTRACT)/$${file%/*}" && cp "$(GOOGLEAPIS)/$$file" "$(CONTRACT)/$$file"; done
	@find $(CONTRACT) -exec touch -t 198001010000 {} + && cd dist && "$(CURDIR)/$(BIN)/python" -m zipfile -c $(notdir $(CONTRACT)).zip $(notdir $(CONTRACT))/*
	@cp generated/caseload/v1/caseload.binpb dist/
	@rm -rf $(CONTRACT)
	@if $(GO_IS_NEW); then $(MAKE) --no-print-directory dist/caseload.openapi.json; \
		else echo 'no OpenAPI document: $(NO_GATEWAY_GO)' >&2; fi

.PHONY: gateway
gateway: $(PROTO)/installed $(GATEWAY)/plugins ## build caseload-gateway, which translates HTTP and JSON, into .tools/bin; needs Go
	@$(NEEDS_NEW_GO)
	@cp docs/deploy/gateway/*.go client/caseload/client/service_config.json $(GATEWAY) && mkdir -p .tools/bin
	@$(PROTOC) --plugin=$(GATEWAY)/bin/protoc-gen-go --go_out=$(GATEWAY) --go_opt=paths=source_relative \
		--plugin=$(GATEWAY)/bin/protoc-gen-go-grpc --go-grpc_out=$(GATEWAY) --go-grpc_opt=paths=source_relative \
		--plugin=$(GATEWAY)/bin/protoc-gen-grpc-gateway --grpc-gateway_out=$(GATEWAY) \
		--grpc-gateway_opt=paths=source_relative,allow_patch_feature=false $(PROTOS)
	@cd $(GATEWAY) && go build -o ../bin/caseload-gateway .

.PHONY: wheels
wheels: $(INSTALLED) ## build both wheels into dist/
	@rm -rf dist/*.whl
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist ./client ./service

# In an environment and a folder that cannot see the checkout, so that a file missing from a wheel shows.
.PHONY: wheel-test
wheel-test: wheels grpcurl-where-go ## run the tests against the built wheels, away from the checkout
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(BIN)/python -m venv "$$away/venv"; python="$$away/venv/bin/python"; \
	"$$python" -m $(PIP_INSTALL) --require-hashes -r requirements/test.txt; \
	"$$python" -m $(PIP_INSTALL) --no-deps dist/*.whl; \
	"$$python" -m pip check; \
	mkdir "$$away/tested"; cp -R $(wildcard tests docs protos README.md client_example.py pyproject.toml) "$$away/tested"; \
	cd "$$away/tested"; "$$python" -m $(PYTEST) -m 'not checkout'

# The wheels with the lowest grpcio that the server accepts: rpc/grpcio_compat.py uses private names of it.
.PHONY: grpcio-lowest
grpcio-lowest: wheels ## run the tests of rpc/ on the lowest supported grpcio
	@$(BIN)/python -m venv --clear .tools/grpcio
	@.tools/grpcio/bin/python -m $(PIP_INSTALL) --require-hashes -r requirements/test.txt
	@.tools/grpcio/bin/python -m $(PIP_INSTALL) --no-deps dist/*.whl
	@.tools/grpcio/bin/python -m $(PIP_INSTALL) --no-deps --require-hashes -r requirements/grpcio-lowest.txt
	@.tools/grpcio/bin/python -m pytest -q tests/rpc

# The venvs are made by the Python of .tools/proto: the oldest grpcio has no wheel for a later one.
.PHONY: client-matrix
client-matrix: wheels $(PROTO)/installed ## run the client with five pairs of protobuf and grpcio against a server
	@set -e; for pair in $(CLIENT_PAIRS); do venv=.tools/client-$$pair; \
		$(PROTO)/bin/python -m venv --clear $$venv; \
		$$venv/bin/python -m $(PIP_INSTALL) --require-hashes -r requirements/client-$$pair.txt; \
		$$venv/bin/python -m $(PIP_INSTALL) --no-deps dist/caseload_client-*.whl; \
		$$venv/bin/python -m pip check --disable-pip-version-check >/dev/null; \
		timeout 300 $$venv/bin/python -W error tests/packaging/client_matrix.py $(BIN)/caseload; \
		timeout 300 $$venv/bin/python -m pytest -q -c /dev/null --caseload-server=.venv docs/examples/test_referrals.py; \
	done

# Advisories come from the network. If none is found for a version with known vulnerabilities, their source cannot be
# reached, and the target says so on one line. It then fails only with AUDIT_REQUIRED=true, after three tries: a machine
# that reaches only package registries could never pass.
.PHONY: audit
audit: $(AUDIT)/installed ## fail on a known vulnerability of a pinned package; with AUDIT_REQUIRED=true also where none can be looked up
	@echo 'django==3.0' > $(AUDIT)/vulnerable.txt
	@set -e; for pause in $(if $(filter true,$(AUDIT_REQUIRED)),2 5) end; do \
		if $(PIP_AUDIT) --no-deps -r $(AUDIT)/vulnerable.txt 2>&1 | grep -q '^django '; then \
			for file in $(REQUIREMENTS); do $(PIP_AUDIT) --require-hashes -r $$file; done; exit; fi; \
		[ $$pause = end ] || sleep $$pause; \
	done; echo 'NOT AUDITED: the source of advisories cannot be reached from here' >&2; $(if $(filter true,$(AUDIT_REQUIRED)),exit 1)

.PHONY: check-deploy
check-deploy: $(INSTALLED) $(DEPLOY)/installed ## hold docs/deploy/ to the server, and to what systemd and Kubernetes take
	@$(BIN)/python -m pytest -q tests/deploy

.PHONY: sbom
sbom: $(AUDIT)/installed ## write dist/caseload-server.cdx.json: what the server is made of, with hashes and licences (CycloneDX)
	@mkdir -p dist
	@{ grep -o 'caseload-client==[0-9.]*' service/pyproject.toml; cat requirements/runtime.txt; } | \
		PYTHONWARNINGS=ignore $(AUDIT)/bin/cyclonedx-py requirements --pyproject service/pyproject.toml \
		--output-reproducible --output-file dist/caseload-server.cdx.json -
	@$(BIN)/python -m tests.packaging.sbom dist/caseload-server.cdx.json

.PHONY: bench
bench: $(INSTALLED) $(BENCH)/installed ## the measured claims, into docs/performance.md; needs h2load
	@$(BIN)/python -m benchmarks.run

.PHONY: bench-smoke
bench-smoke: $(INSTALLED) $(BENCH)/installed ## the same in a minute, with small data, to see that it runs and prints the rows of the document
	@$(BIN)/python -m benchmarks.run --smoke
	@for one in scale importing footprint; do $(BIN)/python -m benchmarks.$$one --smoke || exit; done

.PHONY: bench-postgres
bench-postgres: $(INSTALLED) ## PostgreSQL beside SQLite; needs h2load and PostgreSQL
	@$(BIN)/python -m benchmarks.postgres

.PHONY: bench-metrics
bench-metrics: $(INSTALLED) ## what the metrics cost a call; needs h2load
	@$(BIN)/python -m benchmarks.metrics_cost

.PHONY: bench-traces
bench-traces: $(INSTALLED) ## what traces cost a call; needs h2load
	@$(BIN)/python -m benchmarks.traces_cost

.PHONY: bench-scale
bench-scale: $(INSTALLED) ## calls on 10,000,000 assignments and on 10,000, on both databases; LARGE=N for another number
	@$(BIN)/python -m benchmarks.scale $(if $(LARGE),--large $(LARGE))
	@$(BIN)/python -m benchmarks.scale $(if $(LARGE),--large $(LARGE)) --postgres

.PHONY: bench-footprint
bench-footprint: $(INSTALLED) ## the time to a server's first answer, and its memory over 1,000,000 calls; needs h2load
	@$(BIN)/python -m benchmarks.footprint

.PHONY: bench-import
bench-import: $(INSTALLED) ## rows a second into SQLite and PostgreSQL, and the memory that takes
	@$(BIN)/python -m benchmarks.importing

.PHONY: failover
failover: $(INSTALLED) ## kill a primary, then stop a standby, under load: what is lost, and the gap; needs PostgreSQL
	@$(BIN)/python -m benchmarks.failover
	@$(BIN)/python -m benchmarks.failover --standby-stopped

.PHONY: rolling
rolling: $(INSTALLED) ## restarts and kill -9 under 20,000 calls of the shipped client: what fails, and for how long; needs PostgreSQL
	@$(BIN)/python -m tests.process.rolling_restart
	@$(BIN)/python -m tests.process.joining_instance

.PHONY: bench-hostile
bench-hostile: $(INSTALLED) ## how long honest callers wait while others attack; a few minutes
	@$(BIN)/python -m benchmarks.hostile

.PHONY: bench-refused
bench-refused: $(INSTALLED) ## the CPU of the most expensive rejected request of each method, beside the largest valid one
	@$(BIN)/python -m benchmarks.refused_requests

.PHONY: bench-peers
bench-peers: $(INSTALLED) $(PEERS)/spicedb-$(SPICEDB_VERSION) $(PEERS)/openfga-$(OPENFGA_VERSION) ## checks of assignments beside SpiceDB and OpenFGA; needs h2load and Go
	@$(BIN)/python -m benchmarks.peers

.PHONY: overload
overload: $(INSTALLED) ## four times the callers that saturate: what is served, how late, and whether health answers
	@$(BIN)/python -m benchmarks.overload

# `make fuzz COUNT=1000000 SEED=7 FUZZ_DATABASE=postgresql://...`; without SEED, the calls are others each time.
COUNT = 100000
.PHONY: fuzz
fuzz: $(INSTALLED) ## send COUNT generated calls to a server, and fail on any INTERNAL, UNKNOWN or death
	@$(BIN)/python -m tests.fuzz.run --count $(COUNT) $(if $(SEED),--seed $(SEED)) \
		$(if $(FUZZ_DATABASE),--database '$(FUZZ_DATABASE)')

.PHONY: errors-doc
errors-doc: $(INSTALLED) ## rewrite docs/errors.md from the contract and the table of codes
	@$(BIN)/python -m tests.docs.errors_page

.PHONY: lock
lock: ## renew requirements/ from both pyproject.toml files; needs uv; UPGRADE= keeps the versions that can stay
	$(LOCK) -o requirements/runtime.txt
	$(LOCK) --group test -c requirements/runtime.txt -o requirements/test.txt
	$(LOCK) --group dev -c requirements/test.txt -o requirements/dev.txt
	for package in grpcio grpcio-health-checking grpcio-reflection grpcio-status; do \
		sed -n "s/.*\"$$package>=\([0-9.]*\).*/$$package==\1/p" service/pyproject.toml; \
	done | uv pip compile - --quiet --no-deps --generate-hashes --universal --python-version 3.11 \
		--custom-compile-command 'make lock' -o requirements/grpcio-lowest.txt
	$(call lock_group,audit) -o requirements/audit.txt
	$(call lock_group,bench) -o requirements/bench.txt
	$(call lock_group,deploy) -o requirements/deploy.txt
	$(call lock_group,proto) -o requirements/proto.txt
	$(call lock_group,pyright) -o requirements/pyright.txt
	$(foreach pair,$(CLIENT_PAIRS),echo '$(pair)' | sed 's/\(.*\)-\(.*\)/protobuf==\1\ngrpcio==\2/' | $(subst \
		$(SERVER),client/pyproject.toml --extra testing - --resolution lowest-direct,$(LOCK)) \
		-o requirements/client-$(pair).txt &&) :

.PHONY: grpcurl
grpcurl: ## build grpcurl into .tools/bin where PATH has none; needs Go
	@command -v grpcurl >/dev/null || { command -v go >/dev/null || { echo '$(NO_GO)' >&2; exit 1; }; \
		echo 'building grpcurl into .tools/bin'; log=$$(GOBIN="$(CURDIR)/.tools/bin" timeout 600 \
		go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION) 2>&1) || { echo "$$log" >&2; exit 1; }; }

# A toolchain is a module too, checked by Go's checksum database. An unpacked module has no executable files.
.PHONY: go
go: ## a new Go in .tools/bin, where PATH has only an older one
	@$(GO_IS_NEW) || { echo 'fetching Go $(GO_VERSION) into .tools/go'; mkdir -p .tools/bin && cd .tools && \
		folder=$$(go mod download -json golang.org/toolchain@v0.0.1-go$(GO_VERSION).$$(go env GOOS)-$$(go env GOARCH) | \
		sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && [ -n "$$folder" ] && rm -rf go && cp -R "$$folder" go && \
		chmod -R u+w go && chmod +x go/bin/* go/pkg/tool/*/* && ln -sf ../go/bin/go bin/go; }

.PHONY: clean
clean: ## remove what the other targets made, but not data/
	@rm -rf .venv .tools .proto-check .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets above stand on ---

# Each process runs one file at a time, with a PostgreSQL of its own. `make test` has more of them, because its tests often
# wait for a timer. The slow tests start many processes themselves.
PYTEST = pytest -q -n $(PROCESSES) --dist loadfile
PROCESSES = 2
test: PROCESSES = 4

# The tests that run grpcurl are skipped where it cannot be built.
.PHONY: grpcurl-where-go
grpcurl-where-go:
	@! command -v go >/dev/null || $(MAKE) --no-print-directory grpcurl || :
.PHONY: gateway-where-go
gateway-where-go:
	@! $(GO_IS_NEW) || $(MAKE) --no-print-directory gateway || :
GO_IS_NEW = (cd docs/deploy/gateway && go list -m) >/dev/null 2>&1
NEEDS_NEW_GO = $(GO_IS_NEW) || { echo 'cannot build the gateway: $(NO_GATEWAY_GO)' >&2; exit 1; }
NO_GATEWAY_GO = it needs Go 1.26 (https://go.dev/dl), or make go with an older one
NO_GO = no Go to build grpcurl with: install it (https://go.dev/dl), or grpcurl (https://github.com/fullstorydev/grpcurl/releases)

# Each takes minutes to build, and a few gigabytes of Go's caches.
$(PEERS)/spicedb-$(SPICEDB_VERSION):
	$(call install_peer,github.com/authzed/spicedb/cmd/spicedb@$(SPICEDB_VERSION))

$(PEERS)/openfga-$(OPENFGA_VERSION):
	$(call install_peer,github.com/openfga/openfga/cmd/openfga@$(OPENFGA_VERSION))

define install_peer
	@command -v go >/dev/null || { echo 'no Go to build it with: install it (https://go.dev/dl)' >&2; exit 1; }
	@echo 'building $(notdir $@) into $(PEERS)' && mkdir -p $(PEERS)
	@GOBIN="$(CURDIR)/$(PEERS)" go install $(1)
	@touch $@
endef

# The versions and hashes are those of docs/deploy/gateway/go.mod and go.sum.
$(GATEWAY)/plugins: docs/deploy/gateway/go.mod docs/deploy/gateway/go.sum
	@$(NEEDS_NEW_GO)
	@echo 'building the generators of the gateway into $(GATEWAY)' && mkdir -p $(GATEWAY) && cp $^ $(GATEWAY)
	@cd $(GATEWAY) && GOBIN="$(CURDIR)/$(GATEWAY)/bin" go install tool
	@touch $@

# The stamp is made last, so an install that failed or was stopped is done again.
$(INSTALLED): requirements/dev.txt client/pyproject.toml service/pyproject.toml
	@rm -f $@
	@$(if $(shell $(BIN)/python -m pip --version 2>/dev/null),:,$(MAKE_VENV))
	@$(BIN)/python -m $(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m $(PIP_INSTALL) --no-build-isolation --no-deps -e client -e service
	@touch $@

# grpcio-tools of that age has no wheel for a later Python.
$(PROTO)/installed: requirements/proto.txt $(INSTALLED)
	@$(or $(firstword $(call pythons_that_run,$(RUNS_PROTOC),$(PROTO_PYTHON))),$(error $(NO_PROTO_PYTHON))) -m venv --clear $(PROTO)
	@$(PROTO)/bin/python -m $(PIP_INSTALL) --require-hashes -r requirements/proto.txt
	@printf '%s\n' '#!/bin/sh' 'exec "$${0%/*}/python" -m grpc_tools.protoc "$$@"' > $(PROTO)/bin/protoc
	@chmod +x $(PROTO)/bin/protoc
	@touch $@

PROTO_PYTHON = $(BIN)/python python3.12 python3.11
RUNS_PROTOC = import ensurepip$(comma) sys$(comma) venv; sys.exit(sys.version_info[:2] not in ((3$(comma) 11)$(comma) (3$(comma) 12)))
NO_PROTO_PYTHON = protoc needs Python 3.11 or 3.12, with its venv module: install one, or name one with PROTO_PYTHON=

# Separate environments, for tools with many dependencies or with versions that conflict.
.tools/%/installed: requirements/%.txt $(INSTALLED)
	@$(BIN)/python -m venv --clear .tools/$*
	@.tools/$*/bin/python -m $(PIP_INSTALL) --require-hashes -r requirements/$*.txt
	@touch $@

# Without the old versions that the client is tested with.
REQUIREMENTS = $(filter-out requirements/client-%,$(sort $(wildcard requirements/*.txt)))
PIP_AUDIT = $(AUDIT)/bin/pip-audit --strict --disable-pip --progress-spinner off

# $(error) is one line and exit code 2, before anything is run; a failing recipe would add a line of make's own.
MAKE_VENV = $(or $(firstword $(WITH_VENV)),$(error $(if $(NEW_ENOUGH),$(NO_VENV),$(NO_PYTHON)))) -m venv --clear .venv \
	|| { rm -rf .venv; exit 2; }
NEW_ENOUGH = $(call pythons_that_run,import sys; sys.exit(sys.version_info < (3$(comma) 11)),$(PYTHON))
WITH_VENV = $(call pythons_that_run,import ensurepip$(comma) venv,$(NEW_ENOUGH))
NO_PYTHON = no Python 3.11 or later: apt-get install python3 python3-venv, or name one with PYTHON=
NO_VENV = $(firstword $(NEW_ENOUGH)) lacks the venv module: apt-get install python3-venv
pythons_that_run = $(shell for python in $(2); do "$$python" -c '$(1)' 2>/dev/null && echo "$$python"; done)
comma := ,

# google/api comes from googleapis-common-protos, google/protobuf from grpcio-tools; neither is generated here.
PROTOC = $(PROTO)/bin/python -m grpc_tools.protoc -I protos -I "$(GOOGLEAPIS)"
GOOGLEAPIS = $$($(BIN)/python -c 'import google.api.http_pb2 as api; print(api.__file__.partition("/google/api")[0])')
# What the contract imports, and the messages of its errors.
GOOGLE_PROTOS = $(addsuffix .proto,$(addprefix google/,api/annotations api/field_behavior api/http \
	rpc/error_details rpc/status type/date))
PROTOS = $(sort $(wildcard protos/caseload/v1/*.proto))
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' client/pyproject.toml)
CONTRACT = dist/caseload-protos-$(VERSION)
SERVICE_PROTOS = $(filter %_service.proto,$(PROTOS))

# $(call generate,FOLDER)
define generate
	@$(PROTOC) --plugin=$(BIN)/protoc-gen-mypy --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
	@$(PROTOC) --plugin=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) \
		$(SERVICE_PROTOS)
	@$(PROTOC) --include_imports --include_source_info -o $(1)/caseload/v1/caseload.binpb \
		$(PROTOS) $(filter google/rpc/%,$(GOOGLE_PROTOS))
endef

.PHONY: dist/caseload.openapi.json
dist/caseload.openapi.json: $(PROTO)/installed $(GATEWAY)/plugins
	@rm -rf $(GATEWAY)/openapi && mkdir -p dist $(GATEWAY)/openapi
	@$(PROTOC) --plugin=$(GATEWAY)/bin/protoc-gen-openapiv3 --openapiv3_out=$(GATEWAY)/openapi $(SERVICE_PROTOS)
	@$(BIN)/python docs/deploy/gateway/openapi.py $(GATEWAY)/openapi $(VERSION) > $@

UPGRADE = --upgrade
SERVER = service/pyproject.toml --extra oidc --extra otel --extra postgres
LOCK = uv pip compile $(SERVER) --quiet $(UPGRADE) --generate-hashes --universal --python-version 3.11 \
	--no-emit-package caseload-client --custom-compile-command 'make lock'

# $(call lock_group,GROUP): what a group of the root's pyproject.toml needs, without the server's own
lock_group = $(subst $(SERVER),--group $(1),$(LOCK))
