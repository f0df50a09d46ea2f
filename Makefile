.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# Options for the command that the target starts, e.g. `make run ARGS="--duration 10"`.
ARGS ?=

# Debian packages, each with what it is for.
# python3-bpfcc: BCC, compiles and loads bpf/ (PyPI's project of that name is something else); python3-venv: the venv
RUN_PACKAGES := python3-bpfcc python3-venv
# iproute2 iptables nftables conntrack: the lab's namespaces, translation and faults; bind9-dnsutils dnsmasq-base: real
# clients and servers; dnsperf tcpdump: the bench's load and the peer it is compared with; ipvsadm: kube-proxy's mode IPVS
# where the kernel has it; jq: the commands of docs/logs.md and docs/runbooks; openssl: certificates
# of API servers that Go programs accept
LAB_PACKAGES := iproute2 iptables nftables conntrack bind9-dnsutils dnsmasq-base dnsperf tcpdump ipvsadm jq openssl
# golang-github-dnstap-golang-dnstap-cli: the command `dnstap`, reads what the servers of tests/oracle tell of themselves;
# tshark: reads our recordings, and says what is DNS in them; musl-tools gcc: musl's resolver, one of those tested
ORACLE_PACKAGES := golang-github-dnstap-golang-dnstap-cli tshark musl-tools gcc libc6-dev
# qemu-system-x86: the machine; busybox-static kmod: vng makes its initial file system of them; python3-venv: vng
VM_PACKAGES := qemu-system-x86 busybox-static kmod python3-venv
# openssl: the credentials of the tests' control plane
CLUSTER_PACKAGES := openssl
# runc: runs the image as a container runtime would
IMAGE_PACKAGES := runc
# chromium chromium-driver: the browser that shows the page, and what steers it
PAGE_PACKAGES := chromium chromium-driver
# openssl: the credentials of the node's cluster; runc: runs its containers; musl-tools gcc: the programs in its pods, with
# both C libraries; iproute2 iptables nftables conntrack dnsmasq-base: its network, kube-proxy, and the rest of the world
NODE_PACKAGES := openssl runc musl-tools gcc libc6-dev iproute2 iptables nftables conntrack dnsmasq-base
PROGRAMS := .cache/bin
NODE := .cache/node
CRDS := .cache/crds
VM := .cache/vm
# Another Debian release whose kernel to boot, such as trixie or trixie-backports; this machine's own without it.
VM_RELEASE ?=
VM_KERNEL := $(VM)$(addprefix /,$(VM_RELEASE))
GO_BUILD = go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(CURDIR)/$@
WITH_GO = $(if $(shell command -v go),$(1))

.PHONY: help setup setup-lab setup-dev oracles coredns cluster node prometheus image run demo test test-cluster test-prometheus test-slow
.PHONY: test-page pictures test-install test-image test-node verdicts dataplanes healthy vm test-vm check bench bench-vm bench-compare
.PHONY: dashboard lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## install what dnstrail needs on this machine
	@bash deploy/apt-install $(RUN_PACKAGES)

$(VENV)/.installed: requirements/run.txt pyproject.toml
	@bash deploy/apt-install $(RUN_PACKAGES)
	test -x $(BIN)/python || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup-lab: setup
	@bash deploy/apt-install $(LAB_PACKAGES)

setup-dev: setup-lab $(VENV)/.installed-dev

$(VENV)/.installed-dev: requirements/dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	@touch $@

oracles: setup-lab $(PROGRAMS)/unbound $(call WITH_GO,coredns) ## DNS servers to compare with, in .cache
	@bash deploy/apt-install $(ORACLE_PACKAGES)

# Only the program: the package would start a name server on this machine.
$(PROGRAMS)/unbound: deploy/apt-extract
	@bash deploy/apt-extract unbound $(PROGRAMS) usr/sbin/unbound

coredns: $(PROGRAMS)/coredns

# 35 s on two cores with nothing downloaded before; kept in .cache until its sources change.
$(PROGRAMS)/coredns: $(wildcard tests/oracle/coredns/*)
	cd tests/oracle/coredns && $(GO_BUILD)

CLUSTER := $(PROGRAMS)/kubernetes $(PROGRAMS)/coredns-kubernetes $(PROGRAMS)/kubectl $(PROGRAMS)/helm
CLUSTER += $(CRDS)/.got $(CRDS)/openshift/.got
cluster: $(CLUSTER) ## a Kubernetes control plane for the tests, in .cache
	@bash deploy/apt-install $(CLUSTER_PACKAGES)

# Control plane, kubelet and kube-proxy: nine minutes of CPU time with nothing compiled before; kept in .cache until its sources change.
$(PROGRAMS)/kubernetes: $(wildcard tests/cluster/kubernetes/*)
	cd tests/cluster/kubernetes && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && \
	go build -trimpath -buildvcs=false -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" -o $(CURDIR)/$@ .

# Two minutes of CPU time, likewise. Without libc, so that it is an image by itself.
$(PROGRAMS)/coredns-kubernetes: $(wildcard tests/cluster/coredns/*)
	cd tests/cluster/coredns && CGO_ENABLED=0 $(GO_BUILD)

$(PROGRAMS)/kubectl: $(wildcard tests/cluster/kubectl/*)
	cd tests/cluster/kubectl && $(GO_BUILD)

# Two minutes of CPU time with nothing compiled before; go.mod names the program as a tool, so it needs no code here.
HELM := helm.sh/helm/v3/cmd/helm
$(PROGRAMS)/helm: $(wildcard tests/install/helm/*)
	cd tests/install/helm && $(GO_BUILD) $(HELM)

# How the Prometheus operator defines the kinds of deploy/prometheus.
OPERATOR := github.com/prometheus-operator/prometheus-operator
$(CRDS)/.got: tests/prometheus/operator/go.mod
	mkdir -p $(CRDS)
	cd tests/prometheus/operator && go mod download $(OPERATOR) && \
	install -m 644 -t $(CURDIR)/$(CRDS) "$$(go list -m -f '{{.Dir}}' $(OPERATOR))"/example/prometheus-operator-crd/*_{podmonitors,prometheusrules}.yaml
	@touch $@

# How OpenShift defines the kind of deploy/kustomize/openshift.
OPENSHIFT := github.com/openshift/api
$(CRDS)/openshift/.got: tests/cluster/openshift/go.mod
	mkdir -p $(@D)
	cd tests/cluster/openshift && go mod download $(OPENSHIFT) && \
	install -m 644 -t $(CURDIR)/$(@D) "$$(go list -m -f '{{.Dir}}' $(OPENSHIFT))"/security/v1/zz_generated.crd-manifests/*.yaml
	@touch $@

NODE_PROGRAMS := $(addprefix $(PROGRAMS)/,kubernetes coredns-kubernetes kubectl) $(NODE)/containerd $(NODE)/cni/bridge
node: $(call WITH_GO,image $(NODE_PROGRAMS)) ## a Kubernetes node for the tests, in .cache
	@bash deploy/apt-install $(NODE_PACKAGES)

# Only the programs: the package would start a container runtime on this machine.
$(NODE)/containerd: deploy/apt-extract
	@bash deploy/apt-extract containerd $(NODE) $(addprefix usr/bin/,containerd containerd-shim-runc-v2 ctr)

$(NODE)/cni/bridge: deploy/apt-extract
	@bash deploy/apt-extract containernetworking-plugins $(NODE)/cni \
		$(addprefix usr/lib/cni/,bridge host-local loopback portmap)

# Only the programs: the package would start a server on this machine.
$(PROGRAMS)/prometheus: deploy/apt-extract
	@bash deploy/apt-extract prometheus $(PROGRAMS) usr/bin/prometheus usr/bin/promtool

# Loki's query language without Loki; two minutes of CPU time with nothing compiled before.
$(PROGRAMS)/logql: $(wildcard tests/logql/*)
	cd tests/logql && $(GO_BUILD)

prometheus: setup-lab $(PROGRAMS)/prometheus $(call WITH_GO,$(PROGRAMS)/logql) ## Prometheus and Loki's query engine, in .cache

# The seccomp profile of containers, from containerd's own code.
$(PROGRAMS)/runtime-default: $(wildcard tests/image/seccomp/*)
	cd tests/image/seccomp && $(GO_BUILD)

image: setup-dev $(call WITH_GO,$(PROGRAMS)/runtime-default) ## the container image, in .cache, built without a container engine
	@bash deploy/apt-install $(IMAGE_PACKAGES)
	bash deploy/image/base .cache/image
	bash deploy/image/build .cache/image localhost/dnstrail-base

run: setup ## watch this host's DNS: one JSON line per session
	@exec $(BIN)/dnstrail run $(ARGS)

demo: setup-lab ## a small node with real servers and real faults, and the verdict on each
	@exec $(BIN)/dnstrail demo $(ARGS)

test: setup-dev oracles $(PROGRAMS)/prometheus ## all tests, on this machine's real kernel
	@bash deploy/test $(ARGS)

test-slow: setup-dev oracles $(PROGRAMS)/prometheus ## variants of what `make test` shows too: other data planes, protocols, families
	$(BIN)/python -m pytest -m slow $(ARGS)

vm: $(VM)/.installed $(VM_KERNEL)/.kernel ## Debian's kernel and an emulator to boot it, in .cache
	@bash deploy/apt-install $(VM_PACKAGES)

$(VM_KERNEL)/.kernel: deploy/vm-kernel
	bash deploy/vm-kernel $(VM_KERNEL) $(VM_RELEASE)
	@touch $@

$(VM)/.installed: requirements/vm.txt
	@bash deploy/apt-install $(VM_PACKAGES)
	/usr/bin/python3 -m venv --clear $(VM)/venv
	$(VM)/venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/vm.txt
	@touch $@

test-vm: setup-dev oracles vm ## tests/kernel on a Debian kernel (VM_RELEASE=trixie) in an emulated machine; slow
	VM_RELEASE=$(VM_RELEASE) bash deploy/test-vm $(ARGS)

test-cluster: setup-dev cluster ## the tests with a real API server (needs Go)
	$(BIN)/python -m pytest tests/cluster $(ARGS)

INSTALL := $(PROGRAMS)/helm $(PROGRAMS)/kubectl
test-install: setup-dev $(call WITH_GO,$(INSTALL)) ## the Helm chart and the kustomize components (needs Go)
	$(BIN)/python -m pytest tests/install $(ARGS)

test-prometheus: setup-dev oracles prometheus ## a real Prometheus watches a node that breaks: alerts, dashboard, log queries
	$(BIN)/python -m pytest tests/prometheus tests/kernel/test_log_queries.py $(ARGS)

test-page: setup-dev ## the page in a real browser (Debian's Chromium)
	@bash deploy/apt-install $(PAGE_PACKAGES)
	$(BIN)/python -m pytest tests/page $(ARGS)

pictures: setup-dev ## docs/pictures: the page as a browser shows it
	@bash deploy/apt-install $(PAGE_PACKAGES)
	$(BIN)/python -m tests.page.pictures docs/pictures

test-image: setup-dev image $(call WITH_GO,cluster) ## the image, run with exactly what daemonset.yaml grants
	$(BIN)/python -m pytest tests/image $(ARGS)

test-node: setup-dev node ## a whole Kubernetes node, and dnstrail on it (needs Go)
	$(BIN)/python -m pytest tests/node $(ARGS)

verdicts: setup-dev oracles ## break a node in every way, many times, and compare fault and verdict
	$(BIN)/python -m tests.verdicts $(ARGS)

dataplanes: setup-dev oracles ## docs/dataplanes.md: what is said of every fault on every data plane
	$(BIN)/python -m tests.verdicts.dataplanes --write docs/dataplanes.md $(ARGS)

healthy: setup-dev oracles ## 100 000 healthy lookups, none of which may get a cause
	$(BIN)/python -m tests.verdicts.healthy $(ARGS)

check: setup-dev ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-dev $(call WITH_GO,coredns) ## measure the agent's costs, beside no agent and beside its peers
	@exec $(BIN)/python -m bench.budget $(ARGS)

bench-vm: setup-dev vm $(call WITH_GO,coredns) ## the same on a kernel as test-vm: ARGS="--rounds 1 saturation"
	VM_MODULE=bench.budget VM_RELEASE=$(VM_RELEASE) bash deploy/test-vm $(ARGS)

bench-compare: setup-lab ## what a change costs, beside another checkout: ARGS=../before
	@exec $(BIN)/python -m bench.compare $(ARGS)

dashboard: setup-dev prometheus $(VENV)/.installed-plot ## docs/dashboard.png: a node that breaks, drawn from a Prometheus
	$(BIN)/python -m bench.dashboard docs/dashboard.png

$(VENV)/.installed-plot: requirements/plot.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/plot.txt
	@touch $@

lock: ## renew requirements/*.txt from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --group build pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --group dev pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --group vm -o requirements/vm.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --group plot -o requirements/plot.txt

clean: ## remove what the targets made here
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
