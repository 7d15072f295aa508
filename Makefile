# The two commands that do all the set-up: `make up` and `make test`.
CARGO ?= cargo
PROFILE ?= ci
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The tests on the engines wait more than they work.
TEST_THREADS ?= 3
TOLLSTREAM := $(TARGET)/$(PROFILE)/tollstream

# Where `make test-faults` notes what is finished.
FAULTS := $(abspath $(TARGET))/faults-finished

.PHONY: up down test test-faults lint build release bench prerequisites test-prerequisites

## Builds, starts engines and gateway in the background, streams one answer and shows the row that says what it cost.
up: prerequisites build
	$(TOLLSTREAM) up --detach

## Ends what `make up` started; data stays in .tollstream/.
down:
	$(TOLLSTREAM) down

## Everything that must hold: formatting, lints, unit tests, tests on the real engines, documentation, topology.
test: test-prerequisites lint
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --profile $(PROFILE) --features failpoints
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --profile $(PROFILE) --no-deps --quiet
	$(TOLLSTREAM) topology check

## The fault suite in full size, about an hour. It goes on where it was broken off; FRESH=1 begins anew.
test-faults: test-prerequisites
	$(if $(FRESH),rm -f $(FAULTS))
	TOLLSTREAM_FAULTS=$(FAULTS) $(CARGO) test --profile $(PROFILE) --features failpoints --test main \
		faults:: -- --nocapture --test-threads=1

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --profile $(PROFILE) --features failpoints --all-targets --quiet -- -D warnings

build:
	$(CARGO) build --profile $(PROFILE)

release:
	$(CARGO) build --release

prerequisites:
	bash stack/install-prerequisites.sh

test-prerequisites:
	bash stack/install-prerequisites.sh --tests
