# Needs make and any Python from 3.11 on; everything is installed into .venv beside this file.

STUDY ?= studies/mnist-quick.toml
OUT ?= runs
# The address of another package index to take torch from, such as PyTorch's own for CPU builds.
TORCH_INDEX ?=
# Where the tests of GPUs run: cuda, or cpu where there is none.
DEVICE ?= cuda
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install extras study test test-gpu test-outages test-timm lint site clean

help:
	@echo "make study     reproduce the MNIST study in its quick version and say where the report is"
	@echo "               (STUDY=studies/mnist-paper.toml for the full one, about an hour;"
	@echo "               STUDY=studies/cifar10-quick.toml for CIFAR-10, about four minutes)"
	@echo "make install   create .venv with the exact versions of requirements.lock"
	@echo "make test      run the tests"
	@echo "make test-outages  run those that kill processes, cut off nodes and power, and fill disks"
	@echo "make test-gpu  run those that compare a GPU with the processor (DEVICE=cpu without one)"
	@echo "make test-timm run the tests with networks of timm, in an environment of their own"
	@echo "make site      build the documentation's site into site/, after make extras"
	@echo "make extras    install what further tests and the documentation's site need besides"
	@echo "make lint      check style, types and the directions of imports"
	@echo "make clean     remove .venv, .venv-timm and caches; runs/ and results/ stay"
	@echo
	@echo "On Linux the default package index serves torch with CUDA (2.7 GB to download). The CPU"
	@echo "build is 0.2 GB; to take it, name the index that serves it, which pytorch.org gives under"
	@echo "'Get Started': make study TORCH_INDEX=address"

install: .venv/installed

.venv/installed: requirements.lock
	@python=""; \
	for name in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	  if $$name -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	      >/dev/null 2>&1; then python=$$name; break; fi; \
	done; \
	if [ -x $(BIN)/python ]; then :; \
	elif [ -z "$$python" ]; then \
	  echo "expected Python 3.11 or newer with venv, found none; install it (on Debian: apt-get" \
	    "install python3 python3-venv)" >&2; exit 1; \
	else echo "Creating .venv with $$($$python --version)"; $$python -m venv .venv; fi
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

# Libraries that tests and guides use where they are there: Hugging Face's, Lightning, file formats,
# and the tools of the documentation's site.
extras: .venv/extras

.venv/extras: requirements-extras.lock .venv/installed
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c requirements.lock -r requirements-extras.lock
	@touch $@

study:
	@if [ ! -e .venv/installed ]; then \
	  echo "To install, once: 0.2 GB of packages, and torch: 0.2 GB in its CPU build, 2.7 GB in the"; \
	  echo "CUDA build that the default index serves on Linux (make help says how to choose)."; \
	fi
ifneq (,$(findstring mnist,$(STUDY)))
	@echo "To fetch, once: MNIST, 11 MB."
	@echo "On two cores the quick study takes about four minutes, the full one about an hour."
endif
ifneq (,$(findstring cifar10,$(STUDY)))
	@echo "To fetch, once: CIFAR-10, 170 MB (184 MB once unpacked)."
endif
	@$(MAKE) --no-print-directory --silent install
	@$(BIN)/flatminima run $(STUDY) --out $(OUT)

# Small tensors: a second thread costs more than it gives, above all on a busy machine. The order of
# files is that of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test test-gpu test-outages: export OMP_NUM_THREADS = 1
test: install
	$(PYTEST) -m "not outage" $(PYTEST_ARGS)

# One after the other: they load the machine themselves, and nodes of two clusters share its ports.
test-outages: install
	$(BIN)/python -m pytest -m outage $(PYTEST_ARGS)

# Skipped by `make test` where there is no GPU.
test-gpu: export FLATMINIMA_TEST_DEVICE = $(DEVICE)
test-gpu: install
	$(PYTEST) tests/accelerator tests/training/test_steps.py $(PYTEST_ARGS)

# timm needs torchvision, whose builds fit one build of torch each; what goes wrong with it must not
# reach the other tests. The environment sees the packages of .venv behind its own.
test-timm: export OMP_NUM_THREADS = 1
test-timm: .venv-timm/installed
	.venv-timm/bin/python -m pytest tests/environments/test_timm.py $(PYTEST_ARGS)

.venv-timm/installed: requirements-timm.lock .venv/installed
	$(BIN)/python -m venv --clear --without-pip .venv-timm
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" \
	  % sysconfig.get_path("purelib"))' > .venv-timm/beside.pth
	@mv .venv-timm/beside.pth \
	  "$$(.venv-timm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(PIP) --python .venv-timm install --no-deps \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements-timm.lock
	@touch $@

# The README is not formatted: its example is aligned by hand.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(wildcard src tests docs benchmarks)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The flag quiets an announcement of its makers.
site: export NO_MKDOCS_2_WARNING = 1
site: extras
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-timm dist build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
