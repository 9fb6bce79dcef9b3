# Works on a fresh machine with Python 3.11+ and make: everything lands in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
PEERS_NEED := -c constraints.txt -e '.[cpu,train]' -r benchmarks/peers-requirements.txt

# A cached byte code makes `import torch` four times faster, so an inherited "do not write" is dropped.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test slow check format bench peers clean

quickstart: $(STAMP)  ## run the whole chain on digits, from teacher to verified bundle
	$(BIN)/compressor run pipelines/digits.yaml
	$(BIN)/compressor verify runs/digits/latest/bundle

test: $(STAMP)  ## unit, property and contract tests and a smoke pipeline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

slow: $(STAMP)  ## faults, concurrency, whole recipes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: $(STAMP)  ## what CI checks besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## loop overhead against a bare PyTorch loop
	$(BIN)/python benchmarks/loop_overhead.py

peers: $(PEERS)/.installed  ## int8 against ONNX Runtime's quantizer and NNCF; goes on where it was
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/int8_peers.py

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers-requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet uv \
	  && $(PEERS)/bin/uv pip install --quiet --python $(PEERS)/bin/python $(PEERS_NEED) \
	  || $(PEERS)/bin/python -m pip install --quiet $(PEERS_NEED)
	touch $@

# uv installs in a quarter of pip's time; where it cannot be had, pip does the same.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[cpu,train,dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,train,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis
