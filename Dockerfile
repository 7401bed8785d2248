# syntax=docker/dockerfile:1
#
#   docker build -t cbn-serve .                            the CPU server: no torch, not root (docs/docker.md)
#   docker build -t cbn-serve-gpu --target gpu .           the same for TensorRT engines
#   docker build -t cbn-export-gpu --target gpu-export .   builds engines on a GPU
#
# The last stage is the default one.

ARG PYTHON_TAG=3.12-slim
# TensorRT 11.1 on CUDA 13. An engine runs on the version that built it: take one tag for both GPU targets.
ARG TENSORRT_TAG=26.07-py3

# ---- the wheel, with the native library -----------------------------------------------------------------------------
FROM python:${PYTHON_TAG} AS wheel
# The compiler of a stage that is thrown away; whichever the base image's Debian has will do.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE constraints.txt ./
COPY cbn_deploy cbn_deploy
COPY export export
COPY serving serving
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

# ---- the CPU server's packages --------------------------------------------------------------------------------------
FROM python:${PYTHON_TAG} AS packages
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /wheel
# The wheel first and by itself, so that nothing of that name can come from elsewhere.
RUN python -m venv /opt/cbn \
    && /opt/cbn/bin/python -m pip install --no-cache-dir --no-index --no-deps --find-links /wheel cbn-deploy \
    && /opt/cbn/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "cbn-deploy[serve]" \
    && /opt/cbn/bin/python -m pip uninstall --yes pip

# ---- GPU: a server of TensorRT engines ------------------------------------------------------------------------------
FROM nvcr.io/nvidia/tensorrt:${TENSORRT_TAG} AS gpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /wheel
# TensorRT's own Python package belongs to the base image, and so does pip: the base need not have python3-venv.
RUN python3 -m venv --without-pip --system-site-packages /opt/cbn \
    && /opt/cbn/bin/python -m pip install --no-cache-dir --no-index --no-deps --find-links /wheel cbn-deploy \
    && /opt/cbn/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "cbn-deploy[serve]" "cuda-bindings>=13.0,<14"
ENV PATH=/opt/cbn/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CBN_HOST=0.0.0.0 \
    CBN_PORT=8000
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['CBN_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["cbn-serve"]
CMD ["/models/model.engine"]

# ---- GPU: cbn-export --target tensorrt ------------------------------------------------------------------------------
FROM gpu AS gpu-export
USER 0:0
# PyTorch only exports here, so the CPU's will do; the one for CUDA is far larger and insists on a Triton of its own.
RUN /opt/cbn/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu torch \
    && /opt/cbn/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "cbn-deploy[export]" "triton>=3.5"
# Whoever the user is: PyTorch asks for a name, Triton and the assembler for a folder to write to.
ENV HOME=/tmp \
    USER=cbn
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["cbn-export"]
CMD ["--help"]

# ---- CPU: the server of model.onnx ----------------------------------------------------------------------------------
FROM python:${PYTHON_TAG} AS cpu
COPY --from=packages /opt/cbn /opt/cbn
ENV PATH=/opt/cbn/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CBN_HOST=0.0.0.0 \
    CBN_PORT=8000
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['CBN_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["cbn-serve"]
CMD ["/models/model.onnx"]
