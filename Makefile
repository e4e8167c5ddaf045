PYTHON ?= python3
BIN := .venv/bin
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)

.PHONY: setup kernels demo test sanitize neon lint clean

setup: .venv/installed

# Redone whenever the dependencies or the way to build change.
.venv/installed: pyproject.toml csrc/CMakeLists.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isoflop needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@command -v chromedriver > /dev/null || echo "To test reports in a browser as well: apt-get install chromium chromium-driver"
	touch $@

# After a change of the kernels: the Python module, in place.
kernels: setup
	$(CMAKE) -S csrc -B build/kernels -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/kernels

demo: setup
	$(BIN)/python examples/demo.py

# One thread per worker: two workers with two threads each would fight over two cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The kernels and their tests with every instruction set of this machine, under the address and
# undefined behaviour sanitizers. Python itself knows nothing of sanitizers, hence the preloading.
sanitize: setup
	$(CMAKE) -S csrc -B build/sanitize -DISOFLOP_SANITIZE=ON -DISOFLOP_FUZZ=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/sanitize
	ASAN_OPTIONS=detect_leaks=0 build/sanitize/fuzz 300
	rm -rf build/sanitize/python && cp -r src build/sanitize/python
	$(BIN)/cmake --install build/sanitize --prefix build/sanitize/python
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 PYTHONPATH=build/sanitize/python \
		$(BIN)/python csrc/tests/sanitized.py

# The fuzz test for 64-bit Arm, in an emulator. Needs a cross-compiler and qemu; on Debian the
# packages g++-aarch64-linux-gnu and qemu-user.
neon: setup
	$(CMAKE) -S csrc -B build/neon -DISOFLOP_MODULE=OFF -DISOFLOP_FUZZ=ON -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(BIN)/cmake --build build/neon
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/fuzz 100

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright --project tests/pyrightconfig.json
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/tests/*.cpp

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	-git clean -fdXq csrc src
