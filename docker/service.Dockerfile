# The CPU serving image: FastAPI, onnxruntime and the shipped bundles; no torch, no compiler, no pip, not root.
# From the repository root: docker build -f docker/service.Dockerfile -t vqserve:cpu .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
# Only the two files that decide the dependencies, so that this layer is kept while the code changes.
COPY pyproject.toml constraints.txt ./
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt ".[service,otel,cpu]" \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +
COPY service /app/service
RUN python -m compileall -q /app/service

FROM python:3.11-slim-bookworm
# The root file system may be read-only: nothing is written at run time, not even bytecode.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 \
    VQSERVE_HOST=0.0.0.0 VQSERVE_PORT=8000
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE NOTICE ./
# Owned by the service's user: a volume mounted here begins with these bundles, and the training job replaces them in it.
COPY --chown=10001:10001 models models
COPY docker/healthcheck.py healthcheck.py
COPY --from=build /app/service service
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-I", "healthcheck.py"]
CMD ["python", "-m", "service"]
