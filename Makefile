# Every target works on a fresh Debian or Ubuntu machine with Go, make and git; those that run containers
# need root and install what is missing from the distribution.

BIN  := bin
TAGS := containers_image_openpgp,exclude_graphdriver_btrfs
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
export GOFLAGS := -tags=$(TAGS) -buildvcs=false
export GOTOOLCHAIN ?= auto

.PHONY: all build build-test deps test lint unit arch integration demo critest test-kubelet have-kubelet soak test-vm bench install clean

all: build

# One static binary.
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/crid ./cmd/crid

# The programs that the tests, the demo and the benchmark run beside crid, and a crid that dies where it is told to.
build-test: build
	CGO_ENABLED=0 go build -tags=$(TAGS),failpoint -o $(BIN)/crid-failpoint ./cmd/crid
	CGO_ENABLED=0 go build -ldflags '-s -w' -o $(BIN)/web ./test/web
	cd test/tools && CGO_ENABLED=0 go build -o ../../$(BIN)/registry github.com/distribution/distribution/v3/cmd/registry

# $(call gotest,packages,flags). With RERUN=1, as in CI, up to three tests that fail are run once more, and those that pass
# then are named as flaky; a data race is never excused.
gotest = go test $(2) $(1)
ifdef RERUN
unit integration: $(BIN)/gotestsum
gotest = rm -f $(BIN)/flaky && $(BIN)/gotestsum --format standard-quiet --packages='$(1)' --rerun-fails=1 --rerun-fails-max-failures=3 \
	--rerun-fails-abort-on-data-race --rerun-fails-report=$(BIN)/flaky -- $(2) && \
	{ test ! -e $(BIN)/flaky || sed 's/^/FLAKY: /' $(BIN)/flaky; }
endif

$(BIN)/gotestsum: test/tools/go.mod
	cd test/tools && CGO_ENABLED=0 go build -o ../../$@ gotest.tools/gotestsum

deps:
	./test/deps.sh

# All tests: unit tests with the race detector, the house rules, and integration against a real crid.
test: deps lint build-test unit integration

lint:
	@bad=$$(gofmt -l cmd server internal conf test); [ -z "$$bad" ] || { echo "not gofmt-ed: $$bad" >&2; exit 1; }
	CGO_ENABLED=0 go vet ./...
	CGO_ENABLED=0 go vet -tags=$(TAGS),failpoint ./internal/failpoint
	go mod tidy -diff

unit:
	export CGO_ENABLED=1 && $(call gotest,./cmd/... ./server/... ./internal/... ./conf/...,-race -timeout 20m)

arch:
	go test ./internal/arch

# One package of integration tests at a time: they measure how soon crid tells what has happened.
integration:
	$(call gotest,./test/...,-p 1 -timeout 30m -count=1)

# A pod with two containers from image to tear-down, in namespaces of its own.
demo:
	./test/deps.sh demo
	@$(MAKE) --no-print-directory build-test
	CGO_ENABLED=0 go build -o $(BIN)/demo ./test/demo
	$(BIN)/demo

# The conformance suite, with a critest from PATH or $$CRITEST.
critest: build-test
	go test -count=1 -timeout 60m -v ./test/critest -args -critest

# The kubelet itself, without an API server, on a crid. Built once, in ten minutes, and kept outside the tree.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/crid
KUBELET := $(CACHE)/kubelet-$(shell cat test/kubelet/build/go.mod test/kubelet/build/go.sum | sha256sum | cut -c 1-12)
test-kubelet: deps build-test $(KUBELET)
	CRID_KUBELET=$(KUBELET) go test -count=1 -timeout 30m -v -parallel 6 ./test/kubelet -args -kubelet

$(KUBELET):
	mkdir -p $(CACHE)
	cd test/kubelet/build && GOFLAGS= CGO_ENABLED=0 go build -ldflags '-s -w' -o $@.new k8s.io/kubernetes/cmd/kubelet
	mv $@.new $@

# Whether a kubelet is there already, for those who do not want to wait for one.
have-kubelet:
	@test -x $(KUBELET)

# Pods come and go at random for MINUTES while crid is killed again and again; then nothing may be left.
MINUTES ?= 10
soak: deps build-test
	go test -count=1 -timeout 0 -v ./test/soak -args -soak -minutes $(MINUTES) $(SOAK)

# The tests whose ways differ by cgroup version, init system and security module, in virtual machines.
RUN ?= .
test-vm: build-test
	./test/deps.sh vm
	go test -count=1 -timeout 0 -v ./test/vm -run '$(RUN)' -args -vm $(VM)

bench: deps build-test
	CGO_ENABLED=0 go build -o $(BIN)/bench ./test/bench
	$(BIN)/bench $(BENCH)

install: build
	install -D -m 0755 $(BIN)/crid $(DESTDIR)/usr/bin/crid
	install -D -m 0644 conf/crid.service $(DESTDIR)/usr/lib/systemd/system/crid.service
	test -e $(DESTDIR)/etc/crid/crid.toml || install -D -m 0644 conf/crid.toml $(DESTDIR)/etc/crid/crid.toml

clean:
	rm -rf $(BIN)
