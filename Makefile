# Everything a user or a developer does, in one place; CI calls the same targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
export PATH := $(HOME)/.cargo/bin:$(PATH)

CARGO_HOME ?= $(HOME)/.cargo
BIN := $(CARGO_HOME)/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)
ARGS ?=
# A million schedules take about ten minutes; `make test` runs a tenth of them.
SEEDS ?= 1000000

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Look for a compiler, make, OpenSSL's headers and Rust; install what may be installed
	@scripts/setup

.PHONY: build
build: setup ## Build the release binary and put it on the PATH
	cargo build --release -p streamgauge
	@mkdir -p "$(BIN)" && install -m 755 $(TARGET)/release/streamgauge "$(BIN)/streamgauge"
	@echo "streamgauge is at $(BIN)/streamgauge"

.PHONY: run
run: build ## Start everything in one process; Ctrl-C drains (ARGS="--data-dir elsewhere")
	@exec "$(BIN)/streamgauge" up $(ARGS)

.PHONY: test
test: setup ## Run every test that needs nothing but the toolchain
	cargo test --workspace --no-fail-fast

.PHONY: test-stack
test-stack: setup ## Run the same end-to-end tests on Apache Kafka and PostgreSQL
	scripts/test-stack

.PHONY: check
check: setup ## Format, lints, licences and sources, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/deny
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

.PHONY: simulate
simulate: setup ## Run the chain through SEEDS random schedules of crashes, zombies and rebalances
	SIMULATION_SEEDS=$(SEEDS) cargo test --workspace --release --test simulation -- --nocapture

.PHONY: fuzz
fuzz: setup ## Fuzz each reader of foreign bytes for FUZZ_SECONDS (60)
	scripts/fuzz

.PHONY: chaos
chaos: setup ## Strike real processes, Kafka and PostgreSQL with the eleven faults that matter most
	scripts/chaos $(ARGS)

.PHONY: chaos-full
chaos-full: setup ## All faults at 1,000,000 events each
	CHAOS_PROFILE=release scripts/chaos --full $(ARGS)

.PHONY: chaos-mutations
chaos-mutations: setup ## Prove that the fault harness can fail: one protection switched off at a time
	scripts/chaos mutations $(ARGS)

.PHONY: test-monitoring
test-monitoring: setup ## Prove rules, dashboards, traces and alerts on a live system with real Prometheus (ten minutes)
	scripts/test-monitoring $(ARGS)

.PHONY: bench
bench: setup ## Measure side by side with Kafka's own tools, in one run (about ten minutes)
	scripts/bench

.PHONY: dev
dev: ## Build images and start everything on Kafka and PostgreSQL in Docker; wait until healthy
	@scripts/compose dev $(ARGS)

.PHONY: logs
logs: ## Follow the logs of what `make dev` started (ARGS=producer for one)
	@scripts/compose logs $(ARGS)

.PHONY: down
down: ## Stop what `make dev` started; data stays (ARGS=--volumes deletes it)
	@scripts/compose down $(ARGS)

.PHONY: monitoring-up
monitoring-up: ## Start Prometheus, Alertmanager, Grafana and Jaeger in Docker, beside `make run`
	@scripts/compose monitoring-up $(ARGS)

.PHONY: monitoring-down
monitoring-down: ## Stop what `make monitoring-up` started; data stays
	@scripts/compose monitoring-down $(ARGS)

.PHONY: check-deployments
check-deployments: ## Check images and compose files without Docker (ARGS=prove shows that the check can fail)
	@scripts/check-deployments $(ARGS)

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: clean
clean: ## Remove build products (data folders stay)
	cargo clean
