# The one entry for people and for CI. Each target is a line or two: what takes more is a script in scripts/.

# One set of dependency builds for everything: see "Building" in CONTRIBUTING.md.
CARGO_HOME ?= $(HOME)/.cargo
export PATH := $(CARGO_HOME)/bin:$(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

PREFIX ?= /usr/local
CNI_BIN_DIR ?= /opt/cni/bin
FUZZ_SECONDS ?= 20
# For example "--rounds 10 --systems hauberk-userspace,wireguard-go --measures tcp1,latency"; see target/release/hauberk-bench tunnel --help.
BENCH_ARGUMENTS ?=
IMAGE ?= ghcr.io/hauberk-io/hauberk:dev

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-cluster test-vm lint advisories fuzz bench bench-tunnel bench-classify image install uninstall clean

help: ## list the targets
	@echo 'hauberk: encrypts the traffic of pods between nodes. Targets of make:'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: ## install what building and testing need and is missing (Debian, root)
	@scripts/preflight
	@scripts/setup build test

build: ## build hauberkd, hauberk and hauberk-cni into target/debug
	@scripts/setup build
	cargo build --locked --workspace --bins

demo: ## three nodes, two namespaces, a capture of the wire; KEEP=1 leaves the playground up
	@scripts/preflight
	@scripts/setup build
	cargo build --locked --workspace --bins
	KEEP=$(KEEP) target/debug/hauberk-demo

test: ## every test tier, closed with one line of counts; TIERS="unit netns" runs some
	@scripts/preflight
	@scripts/setup build test vm
	@scripts/test $(TIERS)

test-cluster: ## the tier on a real Kubernetes cluster of namespaces; part of test as well
	@scripts/preflight
	@scripts/setup build test
	@scripts/test cluster

test-vm: ## the tier on Linux 6.1 and 6.12, in virtual machines; part of test as well
	@scripts/preflight
	@scripts/setup build test vm
	@scripts/test vm

lint: ## format, clippy, dependency rules and documentation build only
	@scripts/setup build test
	@scripts/test format clippy deny documentation

advisories: ## known vulnerabilities in dependencies (fetches the RustSec database, needs the internet)
	@scripts/setup test
	cargo deny --all-features check advisories

fuzz: ## run every fuzz target for FUZZ_SECONDS (default 20) each; FUZZ_TARGETS="packet" runs some
	@scripts/setup build
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz $(FUZZ_TARGETS)

bench-tunnel: ## encrypted traffic beside wireguard-go, boringtun-cli and gotatun-cli (half an hour, root); BENCH_ARGUMENTS chooses
	@scripts/preflight
	@scripts/bench tunnel $(BENCH_ARGUMENTS)

bench-classify: ## what hauberk costs namespaces that are not encrypted (ten minutes, root)
	@scripts/preflight
	@scripts/bench classify $(BENCH_ARGUMENTS)

bench: ## figures of single parts: the source (development build) and the core; beside others: bench-tunnel, bench-classify
	@scripts/setup build
	cargo test --locked --workspace --lib -- --ignored --nocapture --test-threads 1 2>&1 | grep -vE '^(running 0|test result: ok. 0 passed|     Running|$$)'
	cargo run --locked --release -p hauberk-core --example scale

image: ## the container image target/image/hauberk.tar, without Docker; IMAGE names it
	@scripts/setup build
	deploy/image/binaries target/image/programs
	deploy/image/build --bin-dir target/image/programs --tag $(IMAGE) --output target/image/hauberk.tar

install: ## optimised build into PREFIX (/usr/local), the CNI plugin into CNI_BIN_DIR (/opt/cni/bin)
	@scripts/setup build
	cargo build --locked --release -p hauberk-agent -p hauberk-cli -p hauberk-cni
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/hauberkd target/release/hauberk
	install -D -t $(DESTDIR)$(CNI_BIN_DIR) target/release/hauberk-cni

uninstall: ## remove the installed programs (run `hauberkd uninstall` first: it removes the datapath)
	rm -f $(DESTDIR)$(PREFIX)/bin/hauberkd $(DESTDIR)$(PREFIX)/bin/hauberk $(DESTDIR)$(CNI_BIN_DIR)/hauberk-cni

clean: ## remove everything that was built
	rm -rf target fuzz/target fuzz/corpus fuzz/artifacts ebpf/programs/target ebpf/observer/target
