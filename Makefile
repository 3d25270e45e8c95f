# The project's commands. `make demo` and `make test` are all that a newcomer needs.
PY := .venv/bin/python
SETUP := .venv/.ready
PEERS := .venv/.peers

.PHONY: demo test check bench format docs clean setup

demo: $(SETUP)            ## from nothing to a measured, proved table on the bundled model
	.venv/bin/steno tune nib --weights fp32 --keep tokens --minutes 3 --out demo --force

test: $(SETUP)            ## the test suite, offline
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

check: $(SETUP)           ## what CI runs: the house, the tests, the long properties
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	$(PY) tools/docs.py --check
	$(PY) tools/house.py
	$(MAKE) --no-print-directory test
	$(PY) -m pytest -n 2 --dist loadfile -m slow

bench: $(PEERS)           ## speed beside the peers, as ratios taken in one run
	$(PY) tools/bench.py
	$(PY) tools/docs.py

format: $(SETUP)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: $(SETUP)            ## write the index and the generated pages
	$(PY) tools/docs.py

setup: $(SETUP)

# torch comes first and pinned: left to itself pip would take the newest build and gigabytes of CUDA with it.
$(SETUP): pyproject.toml constraints.txt native/CMakeLists.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -c constraints.txt torch scikit-build-core nanobind cmake ninja
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[hf,train,schema,dev]'
	touch $(SETUP)

# llama.cpp is built here, for this processor. GCC 12 takes an operand of its AMX set-up for 8 bytes and drops the stores
# to the rest, and the first prompt is a segmentation fault: without dead-store elimination AMX works.
$(PEERS): $(SETUP)
	CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'" CMAKE_BUILD_PARALLEL_LEVEL=2 \
	  $(PY) -m pip install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation --editable '.[bench]'
	touch $(PEERS)

clean:
	rm -rf .venv build dist demo
