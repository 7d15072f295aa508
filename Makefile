# The two commands that do all the set-up: `make up` and `make test`.
CARGO ?= cargo
PROFILE ?= ci
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOLLSTREAM := $(TARGET)/$(PROFILE)/tollstream

.PHONY: up down test lint build release bench prerequisites

## Builds, starts engines and gateway in the background, streams one answer and shows the row that says what it cost.
up: prerequisites build
	$(TOLLSTREAM) up --detach

## Ends what `make up` started; data stays in .tollstream/.
down:
	$(TOLLSTREAM) down

## Everything that must hold: formatting, lints, unit tests, tests on the real engines, documentation, topology.
test: prerequisites lint
	$(CARGO) test --profile $(PROFILE)
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --profile $(PROFILE) --no-deps --quiet
	$(TOLLSTREAM) topology check

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --profile $(PROFILE) --all-targets --quiet -- -D warnings

build:
	$(CARGO) build --profile $(PROFILE)

release:
	$(CARGO) build --release

prerequisites:
	bash stack/install-prerequisites.sh
