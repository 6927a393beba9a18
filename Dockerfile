# The images that pipeline steps run in, one per set of dependencies:
#   cpu   ingest, evaluate, gate, release, the web page: no torch
#   gpu   train, export: torch with CUDA; runs on a CPU as well
# and the server's:
#   serving   REST on 8080, gRPC on 8081: no torch, no pyarrow
# Build: make images
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.8
ENV UV_PROJECT_ENVIRONMENT=/opt/linnet \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==${UV_VERSION}
WORKDIR /build
COPY pyproject.toml uv.lock ./

FROM ${BASE_IMAGE} AS runtime
ENV PATH=/opt/linnet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
RUN useradd --uid 10001 --no-create-home linnet
USER 10001
WORKDIR /tmp

FROM build AS build-serving
ENV EXTRAS="--extra serve --extra sign"
RUN /opt/uv/bin/uv sync --locked --no-default-groups --no-install-project ${EXTRAS}
ARG REVISION
COPY README.md LICENSE ./
COPY src src
RUN echo "${REVISION}" > src/linnet/REVISION \
    && /opt/uv/bin/uv sync --locked --no-default-groups --no-editable ${EXTRAS}
# What no server imports: packages' own tests, and ONNX Runtime's tools for making graphs.
RUN cd /opt/linnet/lib/python3*/site-packages \
    && find . -type d \( -name tests -o -name SelfTest \) -prune -exec rm -r {} + \
    && rm -r onnxruntime/quantization onnxruntime/tools onnxruntime/transformers

FROM runtime AS serving
COPY --from=build-serving /opt/linnet /opt/linnet
WORKDIR /srv
COPY serving/__init__.py serving/__main__.py serving/
EXPOSE 8080 8081
ENTRYPOINT ["python", "-m", "serving"]

FROM build AS build-cpu
ENV EXTRAS="--extra evaluate --extra tracking --extra pipelines --extra rollout --extra sign --extra ui"
RUN /opt/uv/bin/uv sync --locked --no-default-groups --no-install-project ${EXTRAS}
ARG REVISION
COPY README.md LICENSE ./
COPY src src
RUN echo "${REVISION}" > src/linnet/REVISION \
    && /opt/uv/bin/uv sync --locked --no-default-groups --no-editable ${EXTRAS}

FROM runtime AS cpu
COPY --from=build-cpu /opt/linnet /opt/linnet

FROM build AS build-gpu
RUN /opt/uv/bin/uv sync --locked --no-default-groups --no-install-project --all-extras
ARG REVISION
COPY README.md LICENSE ./
COPY src src
RUN echo "${REVISION}" > src/linnet/REVISION \
    && /opt/uv/bin/uv sync --locked --no-default-groups --no-editable --all-extras

FROM runtime AS gpu
COPY --from=build-gpu /opt/linnet /opt/linnet
