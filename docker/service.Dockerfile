# The image of one reward service. From the repository's root:
#   docker build -f docker/service.Dockerfile --build-arg SERVICE=ocr --build-arg PORT=18082 -t rewards-ocr .
# A private package index is given as a secret, which stays out of the image: --secret id=pip,src=pip.conf
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ARG SERVICE
ARG PORT
RUN : "${SERVICE:?give --build-arg SERVICE, a folder of services/}" "${PORT:?give --build-arg PORT, its default port}" \
    && python3 -m venv /opt/venv
WORKDIR /build
# The pins alone: this layer is built again only when they change.
COPY requirements/cpu.txt requirements/cuda.txt requirements/
COPY requirements/services/${SERVICE}.txt requirements/services/
COPY scripts/torch_pins.sh scripts/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    list="requirements/services/${SERVICE}.txt" \
    && torch="$(sh scripts/torch_pins.sh /opt/venv/bin/python "$list")" \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r "$list" ${torch:+"$torch"} \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes --quiet pip

FROM ${PYTHON_IMAGE}
ARG SERVICE
ARG PORT
# HOME is the one place that may be written: the root file system is mounted read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp SERVICE=${SERVICE} PORT=${PORT}
# Without the first, onnxruntime writes down a device id and sends usage events; models come from folders, never a hub.
ENV ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY machine machine
COPY wire wire
COPY rewards/__init__.py rewards/
COPY services/__init__.py services/
COPY services/kit services/kit
COPY services/${SERVICE} services/${SERVICE}
COPY docker/ready.py docker/
RUN python3 -m compileall -q machine wire rewards services
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="rewards-${SERVICE}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
EXPOSE ${PORT}
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["python3", "docker/ready.py"]
# A shell because exec form expands no variables; exec, so that the service gets the stop signal.
ENTRYPOINT ["sh", "-c", "exec python3 -m \"services.$SERVICE\" \"$@\"", "service"]
# Outside the container this needs --token-file too: the service says so and stops.
CMD ["--host", "0.0.0.0"]
