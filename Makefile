# `make help` lists the targets. Every target sets up what it needs and reuses what is there.

SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

export ANSIBLE_HOME := $(CURDIR)/.ansible
export PATH := $(CURDIR)/.venv/bin:$(PATH)

LAYOUT ?= classic
VENV := .venv/.complete
LINK := .ansible/collections/ansible_collections/echo_music/ops
PLAY := ansible-playbook -i tests/inventory/local.yml

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV) $(LINK) ## The virtual environment .venv, pinned, and the link that makes this checkout a collection

$(VENV): requirements-dev.txt
	tests/tools/venv.sh
	@touch $@

$(LINK):
	@mkdir -p $(@D)
	@ln -sfn ../../../.. $@

.PHONY: packages
packages:
	tests/tools/ensure-packages.sh

.PHONY: setup
setup: venv packages ## All that demo and tests need: environment, Docker Engine, Compose, test images
	tests/tools/ensure-docker.sh
	tests/tools/ensure-compose.sh
	tests/tools/build-images.sh

.PHONY: demo
demo: setup ## An Echo stack with data in both layouts: backed up, proven, destroyed and restored
	$(PLAY) tests/playbooks/demo.yml

.PHONY: test
test: setup lint sanity unit molecule ## All the tests

.PHONY: lint
lint: venv packages ## ansible-lint, yamllint, shellcheck, documentation, changelog, build and Galaxy's importer
	tests/tools/lint.sh

.PHONY: sanity
sanity: venv packages ## ansible-test sanity
	tests/tools/sanity.sh

# Half of the time they wait, so there are two for each processor.
.PHONY: unit
unit: venv packages ## Unit tests
	pytest -q -n $$((2 * $$(nproc)))

.PHONY: molecule
molecule: setup ## Molecule scenarios, all or SCENARIO="default unified"
	tests/tools/molecule.sh $(SCENARIO)

.PHONY: bench
bench: setup ## Measure against the commands of the 2024 scripts
	python tests/benchmark/run.py

.PHONY: docs
docs: venv ## The documentation as HTML in docs/build
	tests/tools/docs.sh

.PHONY: stack
stack: setup ## Bring the demo stack up and leave it: LAYOUT=classic (default) or unified, SIZE optional
	$(PLAY) tests/playbooks/stack.yml -e layout=$(LAYOUT) $(if $(SIZE),-e size=$(SIZE))

.PHONY: stack-down
stack-down: venv ## Remove the demo stack and its data
	$(PLAY) tests/playbooks/stack_down.yml

.PHONY: clean
clean: ## Remove what the targets built in this checkout; stacks and images stay
	rm -rf .venv .ansible .cache .hypothesis .pytest_cache docs/build
