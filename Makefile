# make demo [IMAGES="a.tar layout/"]   load images, see what they share, get every byte back
# make test                            set up, then everything that has to pass
#
# Also: setup, lint, check (= lint + test), soak, bench, compare, bench-smoke, crash-states, faults, sanitize, wheel, proto, clean. PYTHON=python3.12 chooses another interpreter, 3.11 at least.
# Everything goes into ./.venv and ./demo. Each step is done once, and again when what it was made from has changed.

PYTHON ?= python3
VENV   ?= .venv
IMAGES ?=
CORPUS ?=

BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
NATIVE  := $(wildcard native/*.c native/*.h)
KERNELS := $(BIN)/python -c "from layerstore import kernels; print(kernels.NAME)"

.PHONY: setup demo test lint check soak bench compare bench-smoke crash-states flips faults sanitize wheel proto clean
.DELETE_ON_ERROR:

setup: $(READY)

demo: $(READY)
	@$(BIN)/python -m tools.demo $(IMAGES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The kernels are named, so that a build that failed cannot pass as a test of them.
test: lint
	LAYERSTORE_KERNELS=$$($(KERNELS)) $(BIN)/pytest -q -n auto --dist loadfile
	LAYERSTORE_KERNELS=pure $(BIN)/pytest -q -n auto --dist loadfile tests/unit tests/property
	@test "$$($(KERNELS))" = native || echo "The C kernels were not built (see $(VENV)/setup.log): only the pure ones were tested."

check: lint test

bench: $(READY)
	$(BIN)/python -m benchmarks.bench_ingest $(if $(CORPUS),--corpus $(CORPUS))

# Every program that is installed, on the same images: build/compare/comparison.md, .json and .svg.
compare: $(READY)
	$(BIN)/python -m benchmarks.compare $(if $(CORPUS),--corpus $(CORPUS))

bench-smoke: $(READY)
	$(BIN)/python -m benchmarks.bench_ingest --peers none --rounds 1
	$(BIN)/python -m benchmarks.bench_gc --chunks 200000 --layers 1000
	$(BIN)/pytest -q benchmarks/bench_kernels.py --benchmark-max-time=0.02 --benchmark-min-rounds=1

# Every disk that a crash may leave of each operation (the tests check a sample); the table goes into docs/durability.md.
crash-states: $(READY)
	$(BIN)/python -m tests.faults.crash --write

# An error at every call of the operating system that each operation makes (the tests try a sample): hours.
faults: $(READY)
	$(BIN)/python -m tests.faults.crash.disturb

# Every byte of a small store flipped, one at a time (the tests take a sample); the table goes into docs/durability.md.
flips: $(READY)
	$(BIN)/python -m tests.faults.flips --write

# Ten minutes of random work by four processes, with garbage collection among it; fails if a byte is lost or leaked.
soak: $(READY)
	$(BIN)/python -m tests.faults.soak --seconds 600 --operations 100000

# The C kernels under libFuzzer, ASan and UBSan; then the tests of the kernels against an extension built with them.
sanitize: $(READY)
	$(MAKE) -C native/fuzz check CUT_HASH_RUNS=2000 TAR_SCAN_RUNS=200000
	rm -rf build/sanitize && mkdir -p build/sanitize/source
	cp -r pyproject.toml setup.py README.md LICENSE NOTICE layerstore native build/sanitize/source/
	rm -f build/sanitize/source/layerstore/*.so
	LAYERSTORE_SANITIZE=1 LAYERSTORE_NATIVE=require $(BIN)/pip install -q --no-deps --target build/sanitize/lib build/sanitize/source
	cp -r tests pyproject.toml build/sanitize/lib/
	cd build/sanitize/lib && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 LAYERSTORE_KERNELS=native PYTHONPATH=. \
	  $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider tests/unit/test_kernels.py

# The wheel, installed into an environment of its own and used from another folder, with native and with pure kernels.
wheel: $(READY)
	rm -rf build/wheel && $(BIN)/python -m build -q --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv && build/wheel/venv/bin/pip install -q build/wheel/*.whl
	cd build/wheel && LAYERSTORE_KERNELS=native venv/bin/layerstore version && LAYERSTORE_KERNELS=pure venv/bin/layerstore version
	cd build/wheel && venv/bin/python -c "import layerstore; assert 'site-packages' in layerstore.__file__, layerstore.__file__"

# What protoc makes is kept in the repository, so that nobody needs protoc to install or to test.
proto: $(READY)
	$(BIN)/python -m pip install -q --group proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. layerstore/serve/_proto/snapshots.proto

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "layerstore needs Python 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing: on Debian, apt-get install python3-venv" >&2; exit 1; }

# Dependency groups need pip 25.1. The build is isolated: setuptools comes from the package index.
$(READY): $(VENV)/bin/python pyproject.toml setup.py $(NATIVE)
	@echo "Setting up $(VENV) (half a minute; the log is $(VENV)/setup.log) ..."
	@rm -f layerstore/_native.*.so   # a build that fails must not leave the old one
	@{ $(BIN)/python -m pip install --upgrade "pip>=25.1" && \
	   $(BIN)/python -m pip install --editable . --group dev; } > $(VENV)/setup.log 2>&1 || \
	  { tail -n 40 $(VENV)/setup.log >&2; exit 1; }
	@echo "Kernels: $$($(KERNELS))"
	@touch $@

clean:
	rm -rf $(VENV) demo build layerstore.egg-info layerstore/_native.*.so
