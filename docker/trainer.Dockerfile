# The image of the trainer. From the repository's root:
#   docker build -f docker/trainer.Dockerfile -t rewards-trainer .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD/outputs:/app/outputs" -e NGPUS=8 \
#     rewards-trainer configs/quickstart.yaml
# A private package index is given as a secret, which stays out of the image: --secret id=pip,src=pip.conf
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ENV VENV=/opt/venv
WORKDIR /app
# The pins alone: this layer is built again only when they change.
COPY requirements/base.txt requirements/cpu.txt requirements/cuda.txt requirements/
COPY scripts/setup_venv.sh scripts/torch_pins.sh scripts/
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    export PIP_NO_CACHE_DIR=1 && source scripts/setup_venv.sh && ensure_venv base && "$VENV/bin/pip" check

FROM ${PYTHON_IMAGE}
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
# Otherwise onnxruntime writes down a device id and sends usage events.
ENV ORT_DISABLE_TELEMETRY=1
COPY --from=packages /opt/venv /opt/venv
# Triton (policy.compile) and DeepSpeed's optimizer on the CPU compile when they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY train.sh ./
COPY scripts/setup_venv.sh scripts/torch_pins.sh scripts/
COPY requirements/base.txt requirements/cpu.txt requirements/cuda.txt requirements/
COPY assets assets
COPY configs configs
COPY rewards rewards
COPY machine machine
COPY wire wire
COPY services services
COPY trainer trainer
RUN python3 -m compileall -q rewards machine wire services trainer \
    && install -d -o 10001 -g 10001 outputs
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="rewards-trainer" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
VOLUME /app/outputs
# The image's environment is the one train.sh would make, so the same command works inside and outside.
ENTRYPOINT ["bash", "train.sh"]
