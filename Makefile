# The commands for developers. `make test` installs the dependencies of the tests on Debian,
# as root; elsewhere it prints the skipped tests.

GO            ?= go
BIN           := $(CURDIR)/.bin
GOLANGCI      := $(BIN)/golangci-lint
GOLANGCI_V    := v2.15.0
GOVULNCHECK   := $(BIN)/govulncheck
GOVULNCHECK_V := v1.5.0
APIDIFF       := $(BIN)/apidiff
APIDIFF_V     := v0.0.0-20261113113407-e3970619a1a4
PLATFORMS     := linux darwin windows freebsd openbsd netbsd
FUZZTIME      ?= 1s
ROUNDS        ?= 30
DOWNTIME      ?= 20m

.PHONY: demo test unit lab fuzz fetch soak nightly bench bench-downtime lint deps

demo: ## map a port on the built-in gateway and send bytes through it
	$(GO) run ./cmd/goforward demo

test: deps ## all tests that this machine can run
	.ci/test

unit: deps ## all packages except the lab, with the race detector
	.ci/timed 'unit tests' .ci/unit

lab: deps ## the real router in network namespaces, and real P2P stacks; fails if a scenario is missing
	.ci/timed lab .ci/lab

fuzz: ## each fuzz target for FUZZTIME
	.ci/timed fuzz .ci/fuzz $(FUZZTIME)

fetch: ## go get and go install of this module, as users run them
	.ci/timed fetch .ci/fetch

soak: ## a simulated month of ten thousand mappings; four minutes
	GOFORWARD_SOAK=1 $(GO) test -count=1 -run TestSimulation -v -timeout 15m ./forward

nightly: ## the long forms of the tests; over an hour
	.ci/nightly

bench: deps ## comparison with other libraries, in the lab; half an hour on an idle machine
	$(GO) test -run '^$$' -bench . -benchmem ./...
	cd bench && GOWORK=off GOFORWARD_LAB=require CGO_ENABLED=0 $(GO) test -count=1 -timeout 2h -run 'TestBench$$' \
		-args -rounds $(ROUNDS) -md RESULTS.md -json results.json

bench-downtime: deps ## downtime after unannounced restarts beside other libraries, in the lab; half an hour
	cd bench && GOWORK=off GOFORWARD_LAB=require CGO_ENABLED=0 $(GO) test -count=1 -timeout 2h -run 'TestDowntime$$' \
		-args -downtime $(DOWNTIME) -md RESULTS.md -downtime-json downtime.json

deps: ## what the tests need besides Go
	.ci/deps

lint: $(GOLANGCI) $(GOVULNCHECK) $(APIDIFF) ## linters, layering, builds for every platform, API comparison, release binary
	.ci/timed lint .ci/lint $(GOLANGCI) $(GOVULNCHECK) $(APIDIFF) $(PLATFORMS)

$(GOLANGCI):
	GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_V)

$(GOVULNCHECK):
	GOBIN=$(BIN) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_V)

$(APIDIFF):
	GOBIN=$(BIN) GOWORK=off $(GO) install golang.org/x/exp/cmd/apidiff@$(APIDIFF_V)
