# One command for each thing that a person or CI does. Needs Python 3.11 or newer, pip and the package index.
# Settings are environment variables (VQSERVE_*) and pass through: `make serve PORT=9000 VQSERVE_DEVICE=cpu`.

PYTHON ?= python3
PROVIDER ?= cpu
CONFIG ?= training/configs/mnist.yaml
RUN := $(basename $(notdir $(CONFIG)))
BUNDLE ?= models/$(RUN)

DEV := .venv
SERVE := .venv-serve-$(PROVIDER)
RAY := .venv-ray
GPU := .venv-gpu
# One thread a test process: many small sessions on few cores are slower with more.
PYTEST = OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help serve test check train bench bench-peers gpu-check check-containers docs test-ray test-gpu-wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

serve: $(SERVE)/installed ## serve models/mnist on port 8000 (PORT=, VQSERVE_*=; PROVIDER=gpu for the CUDA build)
	$(if $(PORT),VQSERVE_PORT=$(PORT)) exec $(SERVE)/bin/python -m service

test: $(DEV)/installed $(DEV)/bin/helm ## run the tests, a file at a time in each of two processes
	$(PYTEST) -n 2 --dist loadfile $(PYTEST_ARGS)

check: $(DEV)/installed ## ruff and mypy --strict
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

train: $(DEV)/installed ## fit CONFIG=training/configs/mnist.yaml into runs/mnist and export it to BUNDLE=models/mnist
	$(DEV)/bin/python -m training fit --config $(CONFIG) --out runs/$(RUN) --resume
	$(DEV)/bin/python -m export runs/$(RUN) $(BUNDLE)

bench: $(DEV)/installed ## measure this machine: sampler, load, rate and distortion; one JSON line each; needs wrk, h2load and data/mnist
	@command -v wrk >/dev/null && command -v h2load >/dev/null && test -d data/mnist || \
	  { echo "make bench needs wrk, h2load (apt-get install wrk nghttp2-client)" \
    "and data/mnist (make train fetches it)" >&2; exit 1; }
	$(DEV)/bin/python -m benchmarks.sampler
	$(DEV)/bin/python -m benchmarks.load
	$(DEV)/bin/python -m benchmarks.rate_distortion data/mnist --out runs/rate_distortion

bench-peers: $(DEV)/installed ## measure beside other servers, all in the same run; writes docs/benchmarks.md
	$(DEV)/bin/python -m benchmarks.peers --record

gpu-check: $(GPU)/installed ## on a GPU machine: CUDA against CPU, then the benchmarks; one JSON document
	@$(GPU)/bin/python -m export.gpu_check $(BUNDLE)

check-containers: $(DEV)/installed ## build the images, run compose and break it on purpose; one JSON document
	$(DEV)/bin/python docker/check_containers.py

docs: $(DEV)/installed ## write the generated pages
	$(DEV)/bin/python -m service.reference
	$(DEV)/bin/python -m docs.images.draw
	$(DEV)/bin/python -m benchmarks.pages
	$(DEV)/bin/python -m tests.docs.blocks

# Ray's own modules warn of deprecations at import, so here warnings are not errors.
test-ray: $(RAY)/installed ## the Ray tests, on a local cluster of two nodes of which one is killed
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -W default tests/deploy_ray $(PYTEST_ARGS)

test-gpu-wheel: $(DEV)/installed $(GPU)/installed ## the real onnxruntime-gpu without a GPU: what it refuses, and how
	GPU_PYTHON=$(GPU)/bin/python $(PYTEST) tests/gpu_wheel $(PYTEST_ARGS)

clean: ## remove the environments that make created
	rm -rf $(DEV) .venv-serve-cpu .venv-serve-gpu $(RAY) $(GPU) .venv-peers-*

$(DEV)/bin/helm: deploy/helm/fetch_helm.py | $(DEV)/installed
	$(DEV)/bin/python deploy/helm/fetch_helm.py $@

# Environments. A stamp is newer than the files that decide what is in it, so a second run installs nothing.
$(DEV)/installed: EXTRAS = training,service,test
$(SERVE)/installed: EXTRAS = service,$(PROVIDER)
$(RAY)/installed: EXTRAS = service,cpu,training,ray,test
$(GPU)/installed: EXTRAS = service,gpu,gpu-check

VERSION := 'import sys; print(*sys.version_info[:2])'

%/installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vqserve needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ "$$($*/bin/python -c $(VERSION) 2>&1)" = "$$($(PYTHON) -c $(VERSION))" ] || rm -rf $*  # another Python's
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@
