# Set-up, checks and the demonstration. Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The checks are made with this torch; a torch that is already there is kept.
TORCH := torch==2.13.0
# Where this Python already has a torch we can run on (a GPU machine, say), it is used as it is. Not
# one of a virtual environment: what is made with its Python does not see it.
TORCH_THERE = $(shell $(PYTHON) -c "import sys, torch; assert sys.prefix == sys.base_prefix; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11)" 2>/dev/null && echo yes)
VENV_FLAGS = $(if $(TORCH_THERE),--system-site-packages)

# Carried to a GPU machine without a network (`gpu-wheels`); never there otherwise.
WHEELS := .wheels
VSCODE := editors/vscode
EDITORS := .cache/editors
INDEX := .cache/index

# Tests start many interpreters: where an image says that no bytecode is written, each of them
# would compile our sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long gpu gpu-wheels checks format bench wheel vsix test-agents test-sarif test-install test-editors unpack-editors clean

demo: $(VENV)/.ready ## complete code in this repository with the embedded model
	$(BIN)/qcn demo

test: $(VENV)/.ready-test checks ## every check; long property tests with the sample each test states
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-long: $(VENV)/.ready-test ## the long property tests with their full counts
	OMP_NUM_THREADS=1 QCN_TEST_FULL=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m long --timeout 3600

# Kernels are compiled by as many processes at once as GPU_WORKERS says, 5 GB of the GPU for each.
# They share the cores: with a thread for each in all of them, threads would wait for each other.
# A test that hangs is ended soon, its process with it, and the others go on; each is named as it
# ends, for whoever has to stop them in the middle.
GPU_TESTS = -m pytest -v -m gpu -n $(GPU_WORKERS) --dist worksteal --timeout 240 --timeout-method thread \
	--durations 15 tests/kernels/triton tests/inference/triton tests/inference/test_gpu.py \
	tests/inference/test_small_cards.py
GPU_WORKERS := 2

ifeq ($(wildcard $(WHEELS)/*.whl),)
gpu: $(VENV)/.ready-test ## what only a GPU shows
	OMP_NUM_THREADS=2 $(BIN)/python $(GPU_TESTS)
else # carried to a machine without a network, whose Python has torch and triton
gpu:
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/carried $(WHEELS)/*.whl
	OMP_NUM_THREADS=2 PYTHONPATH=$(subst $() ,:,$(addprefix $(CURDIR)/,build/carried indexer inference kernels .)) $(PYTHON) $(GPU_TESTS)
endif

# For such a machine: what those tests import beside torch, triton and transformers with what they
# need; pytest and hypothesis are of the versions that the tests know. PYTHON_THERE is that machine's.
# Apart from them, for `benchmarks/gpu_session.sh`: flash-linear-attention, which it compares with,
# and rewrites from this repository's history.
PYTHON_THERE := 3.12
gpu-wheels: $(VENV)/.ready
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: -c constraints.txt -d $(WHEELS) \
		--implementation cp --python-version $(PYTHON_THERE) --platform manylinux2014_x86_64 \
		--platform manylinux_2_17_x86_64 execnet filelock gguf httpx hypothesis iniconfig platformdirs \
		pluggy psutil pytest pytest-asyncio pytest-timeout pytest-xdist
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: -d $(WHEELS)/peers einops fla-core
	$(BIN)/python -m benchmarks.gpu_lookup write $(WHEELS)/rewrites.json

# Coding agents from npm, 400 MB. Of their packages' own scripts one is run: it puts OpenCode's binary
# in its place.
AGENTS := build/agents

test-agents: $(VENV)/.ready-test $(AGENTS)/.ready ## OpenCode and qwen-code on our engine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/agents

$(AGENTS)/.ready: tests/agents/package.json
	mkdir -p $(AGENTS) && cp $< $(AGENTS)
	cd $(AGENTS) && npm install --no-package-lock --no-audit --no-fund --ignore-scripts
	cd $(AGENTS)/node_modules/opencode-ai && node postinstall.mjs
	touch $@

# Microsoft's validator from npm, 45 MB.
SARIF := build/sarif

test-sarif: $(VENV)/.ready-test $(SARIF)/.ready ## what qcn scan writes, by the SARIF validator
	$(BIN)/python -m pytest -v tests/sarif

$(SARIF)/.ready: tests/sarif/package.json
	mkdir -p $(SARIF) && cp $< $(SARIF)
	cd $(SARIF) && npm install --no-package-lock --no-audit --no-fund --ignore-scripts
	chmod u+x $(SARIF)/node_modules/@microsoft/sarif-multitool-linux/Sarif.Multitool
	touch $@

checks: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-test ## speed beside the peers; writes benchmarks/results/
	$(BIN)/python -m benchmarks

wheel: $(VENV)/bin/python ## the server and the engine, in dist/
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

test-install: $(VENV)/.ready-test ## the wheel, built and installed as users do, by pipx and uv
	$(BIN)/python -m pytest -m install tests/installation

# The same sources give the same bytes, whenever and wherever they are packed.
vsix: wheel $(VSCODE)/node_modules/.package-lock.json ## VS Code's extension with the wheel in it, in dist/
	cd $(VSCODE) && npm run -s build && chmod -R u=rwX,go=rX dist media *.json *.md LICENSE && \
		TZ=UTC SOURCE_DATE_EPOCH=315619200 npm run -s package -- --out $(CURDIR)/dist/qcn.vsix

test-editors: vsix $(VENV)/.ready-test $(EDITORS)/.ready $(INDEX)/.ready unpack-editors ## in real editors; screenshots of VS Code in build/editors
	cd $(VSCODE) && npm run -s check && QCN_PYTHON=$(abspath $(BIN)/python) npm run -s test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m editors tests

# Neovim 0.12, Helix and Emacs; where Debian's packages are not reached, their tests skip and say so.
unpack-editors:
	-tests/editors/unpack-editors.sh .cache/debian-editors

$(VSCODE)/node_modules/.package-lock.json: $(VSCODE)/package-lock.json
	cd $(VSCODE) && npm ci --ignore-scripts

# VS Code's own server, as code-server carries it; without its wrapper.
$(EDITORS)/.ready:
	command -v chromium || apt-get install -y chromium || { echo "The tests need Debian's package chromium."; exit 1; }
	npm install --prefix $(EDITORS)/code-server --ignore-scripts --no-audit --no-fund code-server@4.100.3
	cd $(EDITORS)/code-server/node_modules/code-server/lib/vscode && \
		npm install --omit=dev --ignore-scripts --no-audit --no-fund && npm rebuild @vscode/spdlog native-watchdog
	touch $@

# What the wheel needs, and uv and pipx, so that the extension's installation is tried without a network.
$(INDEX)/.ready: pyproject.toml constraints.txt tests/editors/local_index.py $(VENV)/.ready-test | wheel
	rm -rf $(INDEX) && $(BIN)/python tests/editors/local_index.py $(INDEX) dist/qcn_lsp-*.whl
	touch $@

# Ends with a sentence where a Python is too old; the argument is the remedy.
CHECK_PYTHON = import sys; sys.exit(sys.version_info < (3, 11) and \
	f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed. {sys.argv[1]}")

# One without pip (Debian: python3-venv is missing) would be taken for whole at the next try.
$(VENV)/bin/python:
	@$(PYTHON) -c '$(CHECK_PYTHON)' "Name one: make $(MAKECMDGOALS) PYTHON=python3.13"
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV) || { rm -rf $(VENV); exit 1; }

# torch comes first and alone, so that a build that is already there (a CPU build, say) stays. uv,
# where there is one, takes the build that the machine needs; pip the index's, on Linux CUDA's.
$(VENV)/.torch: | $(VENV)/bin/python
	@$(BIN)/python -c '$(CHECK_PYTHON)' "Remove $(VENV), and name one: PYTHON=python3.13"
	@echo "Installing into $(VENV): PyTorch first, unless it is there. This takes minutes."
	$(BIN)/python -c "import torch" 2>/dev/null || \
		{ command -v uv >/dev/null && uv pip install -q --python $(BIN)/python --torch-backend auto -c constraints.txt $(TORCH); } || \
		$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/.torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[engine]"
	touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(VENV)/.torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $(VENV)/.ready $@

clean:
	rm -rf $(VENV) $(WHEELS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
