# sandboxd: `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the machine is small, and the tests share it

# A Go unpacked by hand is often not in a bare PATH; go.mod says which version is needed.
export PATH := $(PATH):/usr/local/go/bin
export GOTOOLCHAIN := auto

VERSION = $(shell git describe --tags --always --dirty 2>/dev/null)
EMBEDDED := daemon/embedded/sandbox-init
STAGE := daemon/embedded/sandbox-stage
STATIC := -ldflags '-s -w -linkmode external -extldflags -static'
TOOLS := .build/tools
SCRIPTS = $(shell git ls-files '*.sh' .ci/run vm/guest/init vm/guest/run-payload vm/run-tests)
FUZZTIME ?= 30s
# What the end-to-end tests run in sandboxes, built once for all packages.
PROGRAMS := .build/test-programs
integration extensions conformance-clients power serve-load: export SANDBOXD_TESTBIN = $(CURDIR)/$(PROGRAMS)
# Packages whose tests need root have files with this build tag.
ROOT_PACKAGES = $(shell grep -rl '^//go:build integration' --include='*_test.go' . | xargs -rn1 dirname | sort -u)
# Where the events of tests are kept for scripts/summary.sh.
RESULTS ?= .build/results
export RESULTS
# One line per package.
GOTESTSUM = $(TOOLS)/gotestsum --format pkgname --format-hide-empty-pkg

.PHONY: help
help: ## list the targets
	@sed -n 's/^test-long-%/test-long-PART/; s/^\([a-zA-Z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 28

.PHONY: setup
setup: ## install what is missing to build, on Debian 12 or 13 as root
	@scripts/setup.sh build

.PHONY: build
build: setup ## build bin/sandboxd, with the init handler inside
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(EMBEDDED) ./cmd/sandbox-init
	CGO_ENABLED=1 go build -trimpath -tags netgo,osusergo,runc_nocriu $(STATIC) -o $(STAGE) ./cmd/sandbox-stage
	CGO_ENABLED=1 go build -trimpath -tags seccomp,netgo,osusergo,sqlite_omit_load_extension -ldflags '-s -w -linkmode external -extldflags -static -X main.version=$(VERSION)' -o bin/sandboxd ./cmd/sandboxd

.PHONY: demo
demo: build ## run a function and an extension, show their isolation; serve functions; check that nothing is left
	@scripts/demo.sh
	@scripts/demo-serve.sh

TEST_PARTS := lint unit race integration conformance-clients extensions wire vm-test demo bench-quick

.PHONY: test
test: $(TEST_PARTS) ## everything that CI checks, in less than an hour
	@scripts/summary.sh

.PHONY: test-parts
test-parts:
	@echo build $(TEST_PARTS)

.PHONY: test-long
test-long: ## what takes longer than CI has: each part that has no result for this commit
	@scripts/test-long.sh missing

# A pattern cannot be .PHONY; no file has such a name.
test-long-%: ## one part of it: attack, fuzz, ledger, power, serve, soak, vm-plain or vm-systemd
	@scripts/test-long.sh run $*

.PHONY: test-long-page
test-long-page: ## write the results of test-long to docs/test-long.md
	@scripts/test-long.sh page

.PHONY: lint
lint: tools $(EMBEDDED) vagrant-check ## formatting, vet, staticcheck and govulncheck of both modules, shellcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	go vet -tags seccomp,integration,vm ./...
	go vet -C conformance ./...
	$(TOOLS)/staticcheck -tags seccomp,integration,vm ./...
	cd conformance && ../$(TOOLS)/staticcheck ./...
	scripts/govulncheck.sh $(TOOLS)/govulncheck
	shellcheck -x $(SCRIPTS)

.PHONY: vagrant-check
vagrant-check: ## check the Vagrantfile
	@scripts/setup.sh vagrant
	vagrant validate --ignore-provider

.PHONY: unit
unit: tools ## tests that need no privilege and no cgo, run as nobody
	$(GOTESTSUM) --jsonfile $(RESULTS)/unit.json --raw-command -- scripts/unprivileged-tests.sh ./rapid/... ./supervisor ./isolation ./architecture

.PHONY: race
race: tools $(EMBEDDED) ## the same and all other unit tests of both modules with the race detector
	$(GOTESTSUM) --jsonfile $(RESULTS)/race.json -- -race -tags seccomp -p 1 -timeout 10m ./...
	cd conformance && ../$(TOOLS)/gotestsum --format pkgname --format-hide-empty-pkg --jsonfile $(abspath $(RESULTS))/race-conformance.json -- -race -p 1 -timeout 10m ./...

.PHONY: integration
integration: tools build ## tests on real namespaces and cgroups of this host, as root
	scripts/setup.sh test
	scripts/test-programs.sh $(PROGRAMS) fail-points
	$(GOTESTSUM) --jsonfile $(RESULTS)/integration.json -- -tags seccomp,integration -p 1 -parallel 4 -count 1 -timeout 30m -skip '^Test(Client|Real)' $(ROOT_PACKAGES)

.PHONY: extensions
extensions: tools build ## run extensions of others, built from public registries, in sandboxes
	scripts/setup.sh extensions
	scripts/test-programs.sh $(PROGRAMS)
	$(GOTESTSUM) --jsonfile $(RESULTS)/extensions.json -- -tags seccomp,integration -count 1 -timeout 20m -run '^TestReal' ./integration/clients

.PHONY: vm-test
vm-test: tools build ## those that depend on the kernel, in a virtual machine with pure cgroup v2
	$(GOTESTSUM) --jsonfile $(RESULTS)/vm.json --ignore-non-json-output-lines --raw-command -- vm/test.sh plain

.PHONY: vm-test-systemd
vm-test-systemd: tools build ## the same in a virtual machine where systemd owns the cgroups
	$(GOTESTSUM) --jsonfile $(RESULTS)/vm-systemd.json --ignore-non-json-output-lines --raw-command -- vm/test.sh systemd

.PHONY: conformance
conformance: build ## run the conformance suite against bin/sandboxd, as root
	CGO_ENABLED=0 go build -C conformance -trimpath -o ../bin/conformance ./cmd/conformance
	bin/conformance check
	@mkdir -p $(RESULTS)
	bin/conformance run --target sandboxd --sandboxd bin/sandboxd --events $(RESULTS)/conformance.json

# Installing and time-outs mostly wait, so the tests run side by side.
.PHONY: conformance-clients
conformance-clients: tools build ## run official clients and SDKs against bin/sandboxd, as root
	scripts/setup.sh clients
	scripts/clients.sh
	scripts/test-programs.sh $(PROGRAMS)
	$(GOTESTSUM) --jsonfile $(RESULTS)/clients.json -- -tags seccomp,integration -count 1 -parallel 4 -timeout 10m -run '^TestClient' ./integration/clients
	go build -C conformance -trimpath -o ../bin/conformance ./cmd/conformance
	bin/conformance clients $(RESULTS)/clients.json

.PHONY: attack
attack: tools build ## the attacks of the tests, at their full length, as root
	SANDBOXD_ATTACK=whole $(GOTESTSUM) --format standard-verbose --jsonfile $(RESULTS)/attack.json -- -tags seccomp,integration -count 1 -timeout 80m -v -p 1 -run 'TestAttack|Exhaustion|Seccomp|TestPosture|Hostile' ./integration/containment ./isolation/runc ./rootfs/...

.PHONY: audit
audit: build ## compare the posture with other runtimes', as root, and write docs/security.md
	scripts/setup.sh audit
	go test -tags seccomp,integration -count 1 -run '^TestAudit$$' ./integration/containment -audit ../../docs/security.md

.PHONY: fuzz
fuzz: $(EMBEDDED) ## run every fuzz target for FUZZTIME (30s)
	scripts/fuzz.sh $(FUZZTIME)

# The suite mostly waits, so that the fuzzing has the CPU meanwhile.
.PHONY: wire
wire: build ## conformance, and fuzz at the lowest priority beside it
	@nice -n 19 $(MAKE) --no-print-directory fuzz & fuzz=$$!; \
	$(MAKE) --no-print-directory conformance; status=$$?; wait $$fuzz && exit $$status

BENCH := .build/bench

.PHONY: bench-programs
bench-programs: build
	@mkdir -p $(BENCH) && cp $(EMBEDDED) $(STAGE) $(BENCH)/
	CGO_ENABLED=0 go build -trimpath -o $(BENCH)/floor ./bench/floor
	CGO_ENABLED=0 go build -trimpath -o $(BENCH)/function/bootstrap ./bench/function
	CGO_ENABLED=1 go build -trimpath -tags seccomp,netgo,osusergo $(STATIC) -o bin/bench ./bench/cmd/bench

.PHONY: bench
bench: bench-programs ## measure everything, as root, and write docs/benchmarks.md
	scripts/setup.sh bench
	bin/bench run --json docs/benchmarks/results.json --docs docs

.PHONY: bench-quick
bench-quick: bench-programs ## compare a short measurement with docs/benchmarks/baseline.json
	scripts/setup.sh bench
	@mkdir -p $(RESULTS)
	bin/bench quick --events $(RESULTS)/bench.json

# N plain cycles, a fifth as many with faults, a tenth as many kills of the daemon, and
# as many failed system calls.
N ?= 10000
SEED ?= $(shell date +%s)
SOAK_TIMEOUT ?= 0
.PHONY: soak
soak: tools build ## cycles with random faults; N (10000), SEED; writes docs/reliability.md
	SOAK_CYCLES=$(N) SOAK_SEED=$(SEED) SOAK_INJECT=$$(($(N) / 10)) SOAK_REPORT=$(CURDIR)/docs/reliability.md \
		$(GOTESTSUM) --format standard-verbose --jsonfile $(RESULTS)/soak.json -- -tags seccomp,integration -count 1 -timeout $(SOAK_TIMEOUT) -v -run '^(TestSoak|TestDaemonStopped|TestInjectedErrors)$$' ./integration/recovery

.PHONY: ledger
ledger: tools build ## 100,000 invocations with mixed outcomes, of which no record is lost or doubled
	SOAK_INVOCATIONS=100000 $(GOTESTSUM) --format standard-verbose --jsonfile $(RESULTS)/ledger.json -- -tags seccomp,integration -count 1 -timeout 30m -v -run '^TestLedger$$' ./integration/recovery

# POWER_SEED repeats the choices of a run, which prints its seed.
.PHONY: power
power: tools build ## cut the power of the store's disk 200 times, kill its process 500 times, damage its files
	scripts/test-programs.sh $(PROGRAMS) fail-points
	POWER_CUTS=200 POWER_KILLS=500 POWER_DAMAGES=400 $(GOTESTSUM) --format standard-verbose --jsonfile $(RESULTS)/power.json -- -tags seccomp,integration -count 1 -timeout 60m -v -p 1 ./internal/forgetfs ./state/blob ./state/powercut

# A round takes about half a minute on an idle machine.
SERVE_ROUNDS ?= 60
.PHONY: serve-load
serve-load: tools build ## rounds of deaths and full disks while 24 functions are invoked and changed; SERVE_ROUNDS (60)
	scripts/test-programs.sh $(PROGRAMS) fail-points
	SERVE_ROUNDS=$(SERVE_ROUNDS) $(GOTESTSUM) --format standard-verbose --jsonfile $(RESULTS)/serve.json -- -tags seccomp,integration -count 1 -timeout 85m -v -run '^TestMixedLoad$$' ./integration/serve

.PHONY: clean
clean: ## remove what was built, machine images too
	rm -rf bin .build $(EMBEDDED)

.PHONY: tools
tools:
	@scripts/setup.sh test
	@mkdir -p $(RESULTS)
	@go build -C tools -o ../$(TOOLS)/ tool

# For what only compiles the daemon; `make build` always makes it anew.
$(EMBEDDED):
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./cmd/sandbox-init
