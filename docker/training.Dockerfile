# The training image: torch with its CUDA libraries, Lightning and the exporter, for CPU and GPU. Runs one job and ends;
# data and runs live in volumes.
# From the repository root: docker build -f docker/training.Dockerfile -t vqserve:training .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt ".[training]"

FROM python:3.11-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE NOTICE ./
COPY service service
COPY training training
COPY export export
# Owned by the job's user: a named volume takes the owner of the folder that it is first mounted on, and its files. The
# shipped bundles are those of the service's image: whichever container comes first, the volume begins with them.
RUN mkdir data runs && chown 10001:10001 data runs
COPY --chown=10001:10001 models bundles
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["python", "-m", "training", "--help"]
