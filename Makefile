# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

TOOLS   := go run ./hack/tools
AS_ROOT := $(CURDIR)/hack/tools/as-root
VERSION  = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# What one compilation leaves in Go's cache serves the next only if these are the same: programs, linter and
# end-to-end tests share the one set, race-enabled tests the other.
PLAIN := CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) -trimpath"

# The short set of each level of tests; "make test-full" empties it.
SHORT := -short

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the programs into bin/: egress-controller, egress-speaker, and lab with its echo server whoami
	$(PLAIN) go build -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/egress-controller ./cmd/egress-speaker ./e2e/lab/cmd/lab ./e2e/lab/cmd/whoami

lab: ## bring up the lab with real parts, run the demo in it, and leave it running
	$(TOOLS) lab
	$(MAKE) build
	$(AS_ROOT) bin/lab up

lab-down: ## take the lab down
	@test -x bin/lab || $(MAKE) build
	$(AS_ROOT) bin/lab down

test: ## run every test: without privileges first, then, as root, in network namespaces and in the lab
	$(TOOLS) test
	$(MAKE) test-unit test-control test-privileged test-e2e

test-full: ## run every test, the long ones included
	$(MAKE) test SHORT=

test-unit: ## run the tests that need no privileges, with the race detector where they can be
	go test -race $(SHORT) ./... | { grep --line-buffered -v 'no test files' || true; }
	$(PLAIN) go test -count=1 -run '^TestHostilePeer$$' ./bgp/gobgp # has the build tag !race

test-control: ## run the scripts and the storm of egress-controller against a real API server; needs no root
	go test -race -tags privileged -count=1 -timeout 15m $(SHORT) ./cmd/egress-controller/

# One package at a time: privileged tests share the kernel's tables and the machine's few cores.
test-privileged: ## run the tests of bgp/ and dataplane/ that need root, in network namespaces of their own
	go test -race -tags privileged -count=1 -p 1 $(SHORT) -exec $(AS_ROOT) ./bgp/... ./dataplane/... | { grep --line-buffered -v 'no test files' || true; }

test-e2e: ## run the tests in the lab, which need root
	$(PLAIN) go test -tags privileged -count=1 -p 1 -timeout 20m $(SHORT) -exec $(AS_ROOT) ./e2e/... | { grep --line-buffered -v 'no test files' || true; }

lint: ## check the code: golangci-lint, gofmt, go vet, go mod tidy
	$(TOOLS) lint
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; }
	$(PLAIN) go vet ./...
	$(PLAIN) go vet -tags privileged ./...
	go mod tidy -diff
	$(PLAIN) "$$($(TOOLS) path lint)/golangci-lint" run --build-tags privileged ./...

generate: ## generate the deep copies and the CRDs of api/
	$(TOOLS) generate
	"$$($(TOOLS) path generate)/controller-gen" object:headerFile=hack/boilerplate.go.txt crd:crdVersions=v1 paths=./api/... output:crd:dir=api/crds

generate-check: ## fail if "make generate" changes anything
	@before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; cp -R api "$$before/"; $(MAKE) generate; \
	git diff --no-index --exit-code "$$before/api" api || { echo "api/ was not up to date: commit what make generate has made"; exit 1; }

rows: ## list the rows of docs/upstream.md that no test is named after; fail if one is forgotten
	go run ./hack/rows

tools: ## build and install everything that the lab and the checks need
	$(TOOLS) all

bench: ## measure the controller side by side with a bare client, then, as root, the dataplane; BENCH="-cells 5000x1000" for another size (docs/benchmarks.md)
	$(TOOLS) kubernetes
	$(MAKE) build
	$(PLAIN) go test -run '^$$' -bench . -benchmem ./controllerext/election ./controllerext/advertisement ./dataplane
	$(PLAIN) go test -run '^$$' -bench . -benchtime 400x ./bgp/gobgp
	$(PLAIN) go build -o bin/bench ./e2e/bench
	bin/bench $(BENCH)
	$(PLAIN) go test -tags privileged -count=1 -run '^TestLadder$$' -v -timeout 1h -exec $(AS_ROOT) ./e2e/dataplane -ladder -ladder-repetitions 3

e2e: ## the kind cluster (not built yet)
	@echo "make e2e: the end-to-end tests on a kind cluster are not built yet; make test runs those in the lab." >&2; exit 1

images: ## container images (not built yet)
	@echo "make images: the container images are not built yet." >&2; exit 1

clean: ## remove bin/; the tools' cache is in $XDG_CACHE_HOME/metallb-egress and may be deleted by hand
	rm -rf bin

.PHONY: help build lab lab-down test test-full test-unit test-control test-privileged test-e2e lint generate generate-check rows tools bench e2e images clean
