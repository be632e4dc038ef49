# Caravan's workshop. `make help` lists the targets; each says what it does in the
# comment behind its name. Go, git and make are enough for build, demo and test;
# race (and so check) needs a C compiler too.

GO          ?= go
STATICCHECK ?= .tools/staticcheck
FUZZTIME    ?= 20s
SHUFFLE     ?= on
SOAK        ?= 1h
SEED        ?= 0
ROUNDS      ?= 3

# The folder for the files of tests (see there), and that for the files of the compiler while it works.
TEST_DIR    ?= $(shell sh internal/testenv/folder.sh)
IN_TEST_DIR  = GOTMPDIR=$${GOTMPDIR:-$${TMPDIR:-/tmp}} TMPDIR=$(TEST_DIR)

# Versions of the tools that `make tools` installs into .tools.
STATICCHECK_VERSION = v0.8.2

# What a build says of itself, from git; outside of a clone just "devel".
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
DATE    := $(shell git show -s --format=%cI HEAD 2>/dev/null)
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

# The packages whose tests take longest. They begin first: the last of them would otherwise run alone.
LONGEST = ./persistence ./internal/clustertest ./cluster/... ./http ./executor/remote ./internal/model

WORKLOADS = w1 w1m w2 w3 w4 w5 output empty w6 recovery open views memory growth fairness metg cluster-rates cluster-idle cluster-stop cluster-failover

.DEFAULT_GOAL := help
.PHONY: help build demo demo-cluster test test-unit test-e2e test-slurm test-browser race check fmt vet lint tidy rules generated tools cover fuzz \
	soak-cluster bench bench-smoke bench-report bench-cluster bench-peers clean $(WORKLOADS:%=bench-%)

help: ## list these targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "  $(WORKLOADS:%=bench-%): one workload alone"

build: ## build bin/caravan: static, with version, commit and date
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/caravan ./cmd/caravan

demo: build ## start a server, run examples/quickstart.json, print the record, clean up
	@sh examples/demo.sh bin/caravan

demo-cluster: build ## start three nodes, run many tasks, lose the leader with its folder, show the end
	@sh examples/demo-cluster.sh bin/caravan

# The tests of a package run in a random order, which finds those that need another one to run first.
# A failure prints the seed; SHUFFLE=SEED repeats that order.
test: test-unit test-e2e ## all tests; no C compiler needed

# The end-to-end tests that measure times do not share the machine with others. Those that mostly
# wait run in parallel afterwards.
#
# Many tests wait: for elections, for processes, for the disk. So twice as many packages as there are
# processors are tested at a time, and up to four tests of a package that call t.Parallel. The longest
# package needs half of the ten minutes that go test allows by default, on a machine that does nothing else.
# go test would run a part of go vet on each package; make vet, which make check runs, has all of it.
test-unit: ## all tests except the end-to-end tests
	CGO_ENABLED=0 $(IN_TEST_DIR) $(GO) test -vet=off -timeout 40m -p $$((2 * $$(nproc))) -parallel 4 -shuffle=$(SHUFFLE) $$($(GO) list $(LONGEST) ./... | grep -v /internal/e2e)

test-e2e: ## the real binary: killed, filled, attacked, asked (about 3 minutes)
	CGO_ENABLED=0 $(IN_TEST_DIR) $(GO) test -vet=off -shuffle=$(SHUFFLE) -parallel 4 -timeout 40m ./internal/e2e/...

# One package at a time: they share the cluster.
test-slurm: ## attempts as jobs of a real Slurm, started for it; root on Debian has it installed (about a minute)
	CGO_ENABLED=0 sh executor/slurm/cluster.sh $(GO) test -shuffle=$(SHUFFLE) -count=1 -p 1 -timeout 5m -tags slurm -run 'TestReal|TestSlurm' ./executor/slurm ./internal/e2e

# The last line that has "rounds" is the summary: rounds, calls, failovers, the longest times without an answer,
# and whether a history breaks a rule. SEED repeats the faults of a run; 0 is a random one, which is printed.
soak-cluster: ## random faults for SOAK (1h) at clusters of the real binary, judged by their histories
	CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 0 -run TestClusterSoak ./internal/clustertest -soak $(SOAK) -seed $(SEED)

test-browser: ## what web pages can make Chromium send; root on Debian has it installed (under a minute)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y --no-install-recommends chromium; } || \
		echo "Chromium is not installed: the tests are skipped" >&2
	CGO_ENABLED=0 $(GO) test -shuffle=$(SHUFFLE) -count=1 -timeout 5m -tags browser ./internal/browsertest

# With -short, tests over every bit, row or size take a sample: make test covers all. The detector keeps
# the processors busy, so fewer packages are tested at a time than without it. It has nothing to see in
# internal/archtest, which reads source files one after the other, and which make rules runs.
race: ## all tests under the race detector, the binary of the end-to-end tests too; needs cgo
	CGO_ENABLED=1 $(IN_TEST_DIR) $(GO) test -vet=off -p $$(($$(nproc) + 1)) -shuffle=$(SHUFFLE) -race -short -timeout 40m $$($(GO) list $(LONGEST) ./... | grep -v -e /internal/e2e -e /internal/archtest)
	CGO_ENABLED=1 $(IN_TEST_DIR) $(GO) test -vet=off -shuffle=$(SHUFFLE) -race -parallel 4 -timeout 40m ./internal/e2e/...

check: fmt vet lint tidy generated rules race ## everything that must hold before a change lands

fmt: ## check the format of all Go files
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }

# Like make test, the checks use no cgo, so that they find most packages compiled.
vet: ## run go vet
	CGO_ENABLED=0 $(GO) vet -tags slurm,browser,faults ./...

lint: $(filter .tools/%,$(STATICCHECK)) ## run staticcheck (STATICCHECK= skips it)
	$(if $(STATICCHECK),CGO_ENABLED=0 $(STATICCHECK) ./...,@echo "staticcheck is skipped")

tidy: ## check that go.mod and go.sum are tidy
	$(GO) mod tidy -diff

# The generators are tools of internal/protogen, at the versions of its go.mod.
generated: ## generate code anew (executor/workerpb); fails if it is not what is checked in
	$(GO) generate ./...
	@git diff --exit-code --stat -- '*.pb.go'

rules: ## import rules, length of files, habits
	CGO_ENABLED=0 $(GO) test -count=1 ./internal/archtest

tools: .tools/staticcheck ## install staticcheck, pinned, into .tools

.tools/staticcheck: Makefile
	GOBIN=$(CURDIR)/.tools $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@touch $@

cover: ## coverage per package; dag must have 95 % of its statements, all others of the binary 80 %
	CGO_ENABLED=0 $(GO) test -shuffle=$(SHUFFLE) -coverprofile=cover.out $$($(GO) list ./... | grep -v /internal/e2e)
	$(GO) run ./internal/covercheck -floor 80 -of dag=95 cover.out

fuzz: ## every fuzz target for FUZZTIME (20s)
	@set -e; for file in $$(git grep -l '^func Fuzz' -- '*_test.go'); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$file); do \
			echo "$$(dirname $$file) $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file); \
		done; \
	done

bench: ## all workloads with their references, ROUNDS (3) rounds each; needs an idle machine
	CGO_ENABLED=0 $(GO) run ./bench --rounds $(ROUNDS) all

$(WORKLOADS:%=bench-%): bench-%:
	CGO_ENABLED=0 $(GO) run ./bench --rounds $(ROUNDS) $*

bench-cluster: ## the workloads of clusters alone: three nodes on this machine, against one (about 7 minutes)
	CGO_ENABLED=0 $(GO) run ./bench --rounds $(ROUNDS) cluster

bench-report: ## all workloads, with charts, written into bench/report (about 23 minutes)
	CGO_ENABLED=0 $(GO) run ./bench --rounds $(ROUNDS) report

bench-peers: ## root on Debian: install the references that the machine lacks
	sh bench/peers/install.sh

bench-smoke: ## short runs of all workloads that fail below their floors (under a minute)
	CGO_ENABLED=0 $(GO) run ./bench --rounds 1 --smoke all

clean: ## remove what the targets made
	rm -rf bin .tools cover.out
