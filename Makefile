# `make serve` runs the server, `make test` every check and test; both set up what they need in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --no-deps --require-hashes

export MACHINE_LEARNING_CACHE_FOLDER ?= model_cache

.PHONY: serve test soak bench bench-clip speed ray image lint lint-deploy format lock clean

serve: $(VENV)/.runtime
	$(BIN)/immich-ml-compat serve

# Many tests wait for processes: three of pytest's keep two cores busy.
test: lint $(VENV)/.oracles $(VENV)/.openvino-provider
	$(BIN)/pytest --numprocesses 3 --dist loadfile

# What takes longer than a test may; the last results are in docs/reliability.md.
soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.soak_load
	$(BIN)/python -m benchmarks.soak_images
	$(BIN)/python -m benchmarks.fuzz.images
	$(BIN)/python -m benchmarks.fuzz.http

bench: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.processes

bench-clip: $(VENV)/.oracles
	$(BIN)/python -m benchmarks.chinese_clip

# `make speed SPEED="--in-flight 1 4 8 16 32 64"`: further options in benchmarks/README.md.
speed: $(VENV)/.reference
	$(BIN)/python -m benchmarks.speed $(SPEED)

# On Ray clusters of several nodes on this machine, with the package ray; outside CI, and written down in docs/scale.md.
ray: $(VENV)/.ray
	$(BIN)/pytest -o addopts="-ra -p no:schemathesis" tests/on_ray
	$(BIN)/python -m benchmarks.scale

# As root on Linux, with debootstrap: the images without a container engine. `make image IMAGE=cpu` for one of them.
IMAGE ?= cpu cuda
image: $(VENV)/.dev
	$(BIN)/python -m benchmarks.image $(IMAGE)

# What is in deploy/ and .github/ by its public schemas and linters. Needs kubectl (for kustomize), shellcheck, promtool.
lint-deploy: $(VENV)/.deploy
	shellcheck deploy/image/start deploy/ray/start
	promtool check config deploy/prometheus/prometheus.yml
	$(BIN)/hadolint Dockerfile.cpu Dockerfile.cuda
	$(BIN)/yamllint --strict deploy .github
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github
	for each in base cuda keda hpa; do \
	    kubectl kustomize deploy/kubernetes/$$each > $(VENV)/manifests.yaml || exit 1; \
	    $(BIN)/kubernetes-validate --strict $(VENV)/manifests.yaml || exit 1; \
	done

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The command line's entry point is installed in place: the code that runs is this checkout's.
$(VENV)/.runtime: requirements/runtime.lock requirements/build.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements/build.lock -r requirements/runtime.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.lock
	$(INSTALL) -r requirements/dev.lock
	touch $@

$(VENV)/.deploy: requirements/deploy.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements/deploy.lock
	touch $@

$(VENV)/.ray: $(VENV)/.dev requirements/ray.lock
	$(INSTALL) -r requirements/ray.lock
	touch $@

# What tests compare with and no lock holds: each package alone, what they need is in dev.lock.
$(VENV)/.oracles: $(VENV)/.dev requirements/oracles.txt
	$(PIP) install --no-deps -r requirements/oracles.txt
	touch $@

# What the stock server has and this one does without: kept apart, for the reference's process alone.
$(VENV)/.reference: $(VENV)/.dev requirements/reference.lock
	$(INSTALL) --upgrade --target $(VENV)/reference -r requirements/reference.lock
	touch $@

# The build of ONNX Runtime that has OpenVINO as a provider: kept apart, for the processes of its tests.
$(VENV)/.openvino-provider: $(VENV)/.dev requirements/onnxruntime-openvino.lock
	$(INSTALL) --upgrade --target $(VENV)/onnxruntime-openvino -r requirements/onnxruntime-openvino.lock
	touch $@

COMPILE = uv pip compile --universal --generate-hashes --no-annotate --no-header --python-version 3.11 $(UPGRADE)

lock:
	$(COMPILE) requirements/build.in -o requirements/build.lock
	$(COMPILE) requirements/deploy.in -o requirements/deploy.lock
	$(COMPILE) requirements/reference.in -o requirements/reference.lock
	$(COMPILE) --no-deps requirements/onnxruntime-openvino.in -o requirements/onnxruntime-openvino.lock
	$(COMPILE) pyproject.toml --excludes requirements/runtime-excludes.txt -o requirements/runtime.lock
	$(COMPILE) pyproject.toml --extra cuda --excludes requirements/runtime-excludes.txt --excludes requirements/cuda-excludes.txt -c requirements/runtime.lock -o requirements/cuda.lock
	$(COMPILE) pyproject.toml --group dev --excludes requirements/dev-excludes.txt -c requirements/runtime.lock -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra ray --excludes requirements/dev-excludes.txt -c requirements/dev.lock -o requirements/ray.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
