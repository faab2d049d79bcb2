# syntax=docker/dockerfile:1
# Two images of the same server:
#   docker build --target cpu --tag loraplex:cpu .      the default target
#   docker build --target cuda --tag loraplex:cuda .    runs with --gpus all (NVIDIA container toolkit)
# It needs nothing but its two volumes: data (registry, adapter packages) and cache (base models).
#   docker run --publish 50051:50051 --volume loraplex-data:/var/lib/loraplex --volume loraplex-cache:/var/cache/loraplex loraplex:cpu
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY constraints ./constraints
RUN python -m pip install --no-cache-dir --requirement constraints/pip.txt
COPY pyproject.toml README.md LICENSE ./
COPY proto/gen ./proto/gen
COPY adapters/loraplex_adapters ./adapters/loraplex_adapters
COPY client ./client
COPY server ./server
COPY trainer ./trainer
COPY loadtest ./loadtest
RUN python -m pip wheel --no-cache-dir --no-deps --build-constraint constraints/constraints.txt --wheel-dir /wheels .

# torch goes first and alone, from the index of the target: what follows finds it there.
FROM wheel AS cpu-environment
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/loraplex \
    && /opt/loraplex/bin/python -m pip install --no-cache-dir --requirement constraints/pip.txt \
    && /opt/loraplex/bin/python -m pip install --no-cache-dir --constraint constraints/constraints.txt \
        --index-url "${TORCH_CPU_INDEX}" torch \
    && for wheel in /wheels/*.whl; do \
        /opt/loraplex/bin/python -m pip install --no-cache-dir --constraint constraints/constraints.txt "${wheel}[server,s3,gcs]"; \
    done

FROM wheel AS cuda-environment
RUN python -m venv /opt/loraplex \
    && /opt/loraplex/bin/python -m pip install --no-cache-dir --requirement constraints/pip.txt \
    && /opt/loraplex/bin/python -m pip install --no-cache-dir --constraint constraints/constraints.txt torch \
    && for wheel in /wheels/*.whl; do \
        /opt/loraplex/bin/python -m pip install --no-cache-dir --constraint constraints/constraints.txt "${wheel}[server,s3,gcs]"; \
    done

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 loraplex \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/loraplex --no-create-home --shell /usr/sbin/nologin loraplex \
    && install --directory --owner=10001 --group=10001 /var/lib/loraplex /var/cache/loraplex
ENV PATH=/opt/loraplex/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LORAPLEX_HOST=0.0.0.0 \
    LORAPLEX_DATA_DIR=/var/lib/loraplex/data \
    XDG_CACHE_HOME=/var/cache/loraplex
WORKDIR /var/lib/loraplex
VOLUME ["/var/lib/loraplex", "/var/cache/loraplex"]
EXPOSE 50051 9464
# A stop drains: give it more than drain_grace_s, e.g. `docker stop --time 40`.
STOPSIGNAL SIGTERM
# The first start downloads and converts the default base; until the base is there nothing listens, and while it loads the server answers NOT_SERVING.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD loraplex health --server "127.0.0.1:${LORAPLEX_PORT:-50051}" || exit 1
ENTRYPOINT ["loraplex"]
CMD ["serve"]
USER 10001:10001

FROM runtime AS cuda
USER root
# Triton compiles the launcher of each kernel on the machine that runs it. Debian's release decides the compiler's version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/var/cache/loraplex/triton
COPY --from=cuda-environment /opt/loraplex /opt/loraplex
USER 10001:10001

FROM runtime AS cpu
COPY --from=cpu-environment /opt/loraplex /opt/loraplex
