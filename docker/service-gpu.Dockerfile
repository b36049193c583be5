# The GPU serving image: onnxruntime-gpu with the CUDA 13.0 and cuDNN 9 wheels of constraints.txt. The host brings the
# NVIDIA driver (580 or newer) and container toolkit. Needs no CUDA base image.
# From the repository root: docker build -f docker/service-gpu.Dockerfile -t vqserve:gpu .
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt ".[service,otel,gpu]" \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +
COPY service /app/service
RUN python -m compileall -q /app/service

FROM python:3.11-slim-bookworm
# NVIDIA_*: what the container toolkit hands in. VQSERVE_DEVICE=cuda: refuse to start where CUDA does not really run.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 \
    VQSERVE_HOST=0.0.0.0 VQSERVE_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility VQSERVE_DEVICE=cuda
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
HEALTHCHECK --interval=10s --timeout=3s --start-period=90s --retries=3 CMD ["python", "-I", "healthcheck.py"]
CMD ["python", "-m", "service"]
