# Everything that people and CI do with the project; CI runs these targets and nothing else.
UV ?= $(shell command -v uv || echo build/uv/bin/uv)
# Every step is a process of its own: none should compile what it imports.
export UV_COMPILE_BYTECODE ?= 1
RUN = $(UV) run --locked --all-extras
REVISION = $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
IMAGE_PREFIX ?= linnet
IMAGE_TAG ?= $(REVISION)
BASE_IMAGE ?= python:3.11-slim-bookworm
SETTINGS ?=
PYTEST ?=
ARGS ?=
# What signs images and the chart; without a key it is the identity that cosign is given in CI.
COSIGN_ARGS ?=
# A registry without TLS: --plain-http.
HELM_ARGS ?=
# A bill of materials names packages: with all their files it is six times as large (serving), and
# Sigstore's public log, which is sent the whole of it, refuses large ones.
SYFT = SYFT_FILE_METADATA_SELECTION=none SYFT_RELATIONSHIPS_PACKAGE_FILE_OWNERSHIP=false syft
# What `make load` asks.
SERVER ?= http://127.0.0.1:8080
MODEL ?=
FUZZ_S ?= 60
# The recipes: a folder with the unpacked sets, mobilenetv2_100's weights, and which runs (all when empty).
DATA ?= data
WEIGHTS ?= hub
RECIPES ?=
# kind: its node image, kind's own when empty.
KIND_NODE_IMAGE ?=
# The platform: its overlay, some of its parts (all when empty), and a folder with what
# manifests/third-party/versions.env would fetch.
OVERLAY ?= kind
PARTS ?=
THIRD_PARTY ?=
PLATFORM = $(RUN) python -m manifests.install $(OVERLAY) --parts "$(PARTS)" \
	--image-prefix $(IMAGE_PREFIX) --image-tag $(IMAGE_TAG) $(if $(THIRD_PARTY),--third-party $(THIRD_PARTY))
SERVING = $(if $(filter kind,$(OVERLAY)),manifests/overlays/kind/)serving

.DEFAULT_GOAL := help
.PHONY: help uv setup run test test-cluster check format compile package protocol images publish-login publish-images \
	publish-chart tools services services-down \
	bench bench-serving load fuzz recipes docs/recipes.md kind-up kind-create kind-load kind-down platform first-release images.txt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

uv:
	@command -v $(UV) >/dev/null || { python3 -m venv build/uv && build/uv/bin/pip install -q uv; }

setup: uv ## Install everything that is locked into .venv
	$(UV) sync --locked --all-extras

run: setup ## Take pictures to a registered release: the digits, or SETTINGS=my.yaml
	$(RUN) linnet run $(SETTINGS)

test: setup services tools ## Run every test, with a real MinIO and PostgreSQL
	$(RUN) pytest $(PYTEST)

test-cluster: setup ## Run the tests of a real cluster, KUBECONFIG's, with the images at IMAGE_TAG
	LINNET_IMAGE_PREFIX=$(IMAGE_PREFIX) LINNET_IMAGE_TAG=$(IMAGE_TAG) $(RUN) pytest -m cluster tests/cluster $(PYTEST)

check: setup ## Lint, check the format, the types and the direction of imports
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) zizmor --offline --quiet .github
	$(RUN) pytest -q tests/unit/test_imports.py

format: setup ## Format and sort
	$(RUN) ruff check --fix
	$(RUN) ruff format

compile: setup ## Compile the pipelines for a cluster to build/pipelines, images at this revision (OVERLAY=gpu-cluster: train on GPUs)
	LINNET_IMAGE_PREFIX=$(IMAGE_PREFIX) LINNET_IMAGE_TAG=$(IMAGE_TAG) LINNET_OVERLAY=$(OVERLAY) \
		$(RUN) python -m pipelines.compile build/pipelines

package: setup ## Compile the pipelines that are shipped inside the library
	$(RUN) python -m pipelines.compile src/linnet/packaged

protocol: setup ## Generate the Python classes of the gRPC messages
	$(RUN) python -m linnet.inference.protocol.generate

images: ## Build the step images and the server's, tagged with this revision (IMAGE_PREFIX, IMAGE_TAG, BASE_IMAGE)
	for target in cpu gpu serving; do \
		docker build --network host --target $$target --build-arg REVISION=$(REVISION) \
			--build-arg BASE_IMAGE=$(BASE_IMAGE) -t $(IMAGE_PREFIX)/$$target:$(IMAGE_TAG) . \
		|| exit 1; \
	done

publish-login: ## Log docker and helm in to REGISTRY as REGISTRY_USER with REGISTRY_PASSWORD
	@printf %s "$$REGISTRY_PASSWORD" | docker login "$$REGISTRY" --username "$$REGISTRY_USER" --password-stdin
	@printf %s "$$REGISTRY_PASSWORD" | helm registry login "$$REGISTRY" --username "$$REGISTRY_USER" --password-stdin

publish-images: ## Push the images, each with a bill of materials and a signature (COSIGN_ARGS, docs/signing.md)
	mkdir -p build/sbom
	for target in cpu gpu serving; do \
		docker push --quiet $(IMAGE_PREFIX)/$$target:$(IMAGE_TAG) && \
		image=$$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' \
			$(IMAGE_PREFIX)/$$target:$(IMAGE_TAG) | grep '^$(IMAGE_PREFIX)/') && \
		$(SYFT) scan --quiet "docker:$(IMAGE_PREFIX)/$$target:$(IMAGE_TAG)" -o spdx-json=build/sbom/$$target.spdx.json && \
		cosign sign --yes $(COSIGN_ARGS) "$$image" && \
		cosign attest --yes $(COSIGN_ARGS) --type spdxjson --predicate build/sbom/$$target.spdx.json "$$image" \
		|| exit 1; \
	done

publish-chart: ## Push the chart, made for the images at IMAGE_PREFIX and IMAGE_TAG, to IMAGE_PREFIX/charts, signed
	rm -rf build/chart && mkdir -p build/chart && cp -r helm/linnet build/chart
	sed 's|^  prefix: linnet$$|  prefix: $(IMAGE_PREFIX)|' helm/linnet/values.yaml > build/chart/linnet/values.yaml
	helm package build/chart/linnet --destination build/chart --app-version $(IMAGE_TAG) \
		$(if $(filter v%,$(IMAGE_TAG)),--version $(IMAGE_TAG:v%=%))
	helm push $(HELM_ARGS) build/chart/linnet-*.tgz oci://$(IMAGE_PREFIX)/charts 2>&1 | tee build/chart/pushed
	digest=$$(sed -n 's/^Digest: //p' build/chart/pushed) && \
		test -n "$$digest" && cosign sign --yes $(COSIGN_ARGS) "$(IMAGE_PREFIX)/charts/linnet@$$digest"

tools: setup ## Build helm, promtool and kustomize and install Chromium for the tests, unless they are there
	$(RUN) python tests/manifests/tools.py
	$(RUN) python tests/ui/browser.py

services: setup ## Install and start MinIO, PostgreSQL and Label Studio for the tests
	$(RUN) python -m tests.services.start

services-down: ## Stop them
	$(RUN) python -m tests.services.stop

bench: setup ## Measure the speed claims; each prints ratios of one run
	for benchmark in ingest training search evaluation pipeline batch; do $(RUN) python -m benchmarks.$$benchmark || exit 1; done

bench-serving: setup ## Measure the server against the limit and five others, 25 min (ARGS=--prepare, --quick)
	$(RUN) python -m benchmarks.serving $(ARGS)

recipes: setup ## Do the runs of recipes/runs.yaml and record them (DATA=DIR WEIGHTS=FILE; RECIPES=pets, ARGS=--missing)
	$(RUN) python -m recipes.record $(RECIPES) --data $(DATA) --weights $(WEIGHTS) $(ARGS)

docs/recipes.md: setup ## Make the recipes' page of the recorded runs
	$(RUN) python -m recipes.page

load: setup ## Load the server at SERVER with MODEL by Locust: percentiles by picture size and users, and a soak (ARGS)
	$(RUN) --with locust python -m benchmarks.locust_load $(SERVER) $(MODEL) $(ARGS)

fuzz: setup ## Fuzz the server's parsers, guided by coverage, for FUZZ_S seconds
	$(RUN) --with atheris python -m tests.serving.fuzz_parsers -max_total_time=$(FUZZ_S)

kind-up: kind-create images kind-load platform first-release ## A cluster of one node with everything on it, and a first model that serves

kind-create: ## Make the kind cluster of kind-config.yaml, unless it is there (KIND_NODE_IMAGE)
	@kind get clusters 2>/dev/null | grep -qx linnet || \
		kind create cluster --config kind-config.yaml $(if $(KIND_NODE_IMAGE),--image $(KIND_NODE_IMAGE))
	@kind export kubeconfig --name linnet
	kubectl --context kind-linnet -n kube-system rollout status deployment/coredns --timeout=300s

kind-load: ## Hand the built images to the kind cluster
	kind load docker-image --name linnet \
		$(foreach target,cpu gpu serving,$(IMAGE_PREFIX)/$(target):$(IMAGE_TAG))

kind-down: ## Remove the kind cluster with everything on it
	kind delete cluster --name linnet

platform: setup ## Bring the platform up, or repair it, on KUBECONFIG's cluster (OVERLAY, PARTS, …)
	$(PLATFORM)

first-release: compile ## Run the pipeline on the cluster and let its release serve, unless it does
	kubectl kustomize $(SERVING) | sed 's#image: linnet/serving:.*#image: $(IMAGE_PREFIX)/serving:$(IMAGE_TAG)#' | \
		kubectl apply --server-side --force-conflicts -f -
	kubectl -n linnet-serving get inferenceservice digits 2>/dev/null || { \
		kubectl -n kubeflow port-forward service/ml-pipeline 8888:8888 >/dev/null & trap "kill $$!" EXIT; sleep 3; \
		$(RUN) linnet submit --pipeline build/pipelines/train_and_release.yaml -p after_release=rollout; }
	kubectl -n linnet-serving wait --timeout=300s inferenceservice/digits \
		--for=jsonpath='{.status.conditions[?(@.type=="Ready")].status}'=True

images.txt: setup ## List every image that a cluster runs, for an air-gapped mirror
	$(PLATFORM) --list-images > $@

clean: ## Remove what was built; workspaces stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
