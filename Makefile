# The commands of the project; `make help` lists them. Every one installs what it needs itself.

HOSTS = 4
DELAY = 0
# Which tests, and how: make unit ARGS="-k manifest -x"
ARGS =

# Ansible requires UTF-8 whatever the terminal says, and the settings of this checkout, wherever it is.
export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

PYTHON_ENVIRONMENT = .venv/bin
PYTEST = $(PYTHON_ENVIRONMENT)/python -m pytest $(ARGS)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## the whole project once, in the embedded lab: archives to records to every GPU host (HOSTS=4 DELAY=0)
	@bin/demo $(HOSTS) $(DELAY)

.PHONY: test
test: ## the whole test run: lint, unit, contract, conformance, integration, other Pythons
	@bin/test $(ARGS)

.PHONY: setup
setup: ## install what is missing: Debian packages, Python packages in .venv
	@bin/setup

.PHONY: lint
lint: setup ## ruff, mypy, vulture, vermin, yamllint, ansible-lint
	@bin/lint

.PHONY: unit
unit: setup ## tests of the Python code, no lab
	$(PYTEST) tests/unit

.PHONY: contract
contract: setup ## consistency tests: names, options, documentation
	$(PYTEST) tests/contract

.PHONY: conformance
conformance: setup ## records against MXNet 1.9.1's own im2rec.py and readers, archives against GNU tar and unzip, S3 against OpenStack Swift, S3 and EC2 against two emulators
	@bin/setup conformance
	@bin/setup strict-s3
	@bin/setup ministack
	$(PYTEST) tests/conformance

.PHONY: judges
judges: setup ## the other formats against the libraries that write and read them; not part of make test (Python 3.11 on x86_64, 9 GB)
	@bin/setup judges
	$(PYTEST) -n 0 tests/judges

.PHONY: integration
integration: setup ## the playbooks in the embedded lab (root or sudo)
	@bin/setup strict-s3
	$(PYTEST) tests/integration

.PHONY: drill
drill: setup ## long failure drills, not part of make test
	$(PYTEST) tests/drill

.PHONY: fuzz
fuzz: setup ## look for inputs that our readers cannot bear, by coverage (ARGS="SECONDS=60 TARGET=tar,zip")
	@bin/setup fuzz
	@.venv-fuzz/bin/python -m tests.fuzz $(ARGS)

.PHONY: zoo
zoo: setup ## pack every file below FOLDER under each policy for bad images; prints what became of them
	@$(PYTHON_ENVIRONMENT)/python -m tests.zoo $(FOLDER)

.PHONY: live
live: setup ## smoke test in a real AWS account, for some cents: asks first (ARGS="-i inventories/mine")
	@$(PYTHON_ENVIRONMENT)/python -m tests.live $(ARGS)

.PHONY: architecture
architecture: setup ## the packages of module_utils, their floors, and which of them imports which
	@$(PYTHON_ENVIRONMENT)/python -m tests.contract.architecture

.PHONY: permissions
permissions: setup ## write the IAM policies of roles/iam_setup and download_host_role into docs/permissions.md
	@$(PYTHON_ENVIRONMENT)/python -m tests.contract.permissions

.PHONY: bench
bench: setup ## benchmarks against other tools, into artifacts/bench.json (ARGS="pack" or "--scale 0.1")
	@bin/setup conformance
	@$(PYTHON_ENVIRONMENT)/python -m bench $(ARGS)

.PHONY: other-pythons
other-pythons: ## module code under Python 3.9, everything without a lab under 3.12 with the newest ansible (ARGS=3.13)
	@bin/other-pythons $(ARGS)

.PHONY: lab-up
lab-up: setup ## start the lab with HOSTS GPU hosts; a change of state takes DELAY seconds there
	@$(PYTHON_ENVIRONMENT)/python -m lab up --hosts $(HOSTS) --delay $(DELAY)

.PHONY: lab-down
lab-down: setup ## stop the lab and remove everything that it created
	@$(PYTHON_ENVIRONMENT)/python -m lab down

.PHONY: locks
locks: ## pins and hashes of all that is installed, from pyproject.toml (ARGS=--upgrade for the newest that no group pins)
	@bin/locks $(ARGS)

.PHONY: audit
audit: ## known vulnerabilities of all that is installed, on the controller and on hosts (ARGS="-s osv")
	@bin/audit $(ARGS)

.PHONY: sbom
sbom: ## what a host gets, as CycloneDX, into artifacts/sbom
	@bin/sbom

.PHONY: clean
clean: ## stop the lab, then remove environments, caches and all other files that git ignores
	@bin/clean
