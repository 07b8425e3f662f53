# The worker in one image. Layers from the largest and steadiest to the smallest: packages, weights, code.
#
#   docker buildx bake whisper                                     the builds by name: docker-bake.hcl
#   docker build --platform linux/amd64 .                          whisper as far as it goes without a token: the worker
#                                                                  may ask the model hub for the rest
#
# torch's wheels carry CUDA 12.8 and cuDNN 9, so the base has none. The token is a BuildKit secret: it is in the build's
# memory while the weights are fetched, and in no layer, no variable and no log.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What is baked; an empty argument leaves it out. The first two are also what the worker takes where a job names nothing.
ARG DEFAULT_MODEL=large-v3
ARG DIARIZATION_MODEL=pyannote/speaker-diarization-community-1
ARG MORE_MODELS=
# Languages whose aligners are baked, for exact word times.
ARG LANGUAGES="en fr ru"
# Anything: a model that cannot be had fails the build, and the worker never asks the model hub.
ARG REQUIRE_ALL=
# Further lock files: builder/requirements-canary.txt for NeMo.
ARG MORE_LOCKS=


FROM ${BASE_IMAGE} AS packages
WORKDIR /app
COPY requirements.txt ./
COPY builder/venv builder/requirements-embedded.txt builder/requirements-canary.txt builder/
ARG MORE_LOCKS
# Compiled now, since the worker may not write here: importing torch and pyannote would compile them at every cold start.
RUN --mount=type=cache,target=/root/.cache/uv,sharing=locked \
    UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy \
    builder/venv requirements.txt builder/requirements-embedded.txt ${MORE_LOCKS} \
    && .venv/bin/uv pip uninstall --quiet --python .venv/bin/python uv \
    && rm -r .venv.lock .venv/.lock .venv/installed
ENV PATH=/app/.venv/bin:$PATH
# CTranslate2 opens cuBLAS and cuDNN by name: the loader must know where the wheels keep them, whoever asks first.
RUN find /app/.venv -type d -path '*/nvidia/*/lib' > /etc/ld.so.conf.d/hansard.conf \
    && ldconfig \
    && python -c "import ctypes, ctranslate2; ctypes.CDLL('libcublas.so.12'); ctypes.CDLL('libcudnn.so.9')"


FROM packages AS models
ARG DEFAULT_MODEL
ARG DIARIZATION_MODEL
ARG MORE_MODELS
ARG LANGUAGES
ARG REQUIRE_ALL
# Another model hub than the public one, for this stage only.
ARG HF_ENDPOINT=
COPY builder/fetch_models.py builder/
COPY src/hansard src/hansard
# The cache keeps downloads between builds: a change of the code runs this again, and downloads nothing again.
RUN --mount=type=secret,id=hf_token --mount=type=cache,target=/var/cache/models,sharing=locked \
    mkdir -p /models \
    && set -- ${DEFAULT_MODEL} ${DIARIZATION_MODEL} ${MORE_MODELS} \
    && if [ -n "$*${LANGUAGES}" ]; then \
        python builder/fetch_models.py "$@" ${LANGUAGES:+--languages ${LANGUAGES}} ${REQUIRE_ALL:+--require-all} \
            --models-dir /models --downloads /var/cache/models; \
    fi


FROM packages
ARG DEFAULT_MODEL
ARG DIARIZATION_MODEL
ARG REQUIRE_ALL
ARG REVISION=unknown
# What the server keeps and downloads: a volume that is new takes its owner from here.
RUN useradd --uid 1000 --create-home hansard \
    && install --directory --owner hansard --group hansard --mode 0700 /var/lib/hansard \
    && install --directory --owner hansard --group hansard \
        /home/hansard/.cache /home/hansard/.cache/huggingface
COPY --from=models /models /models
ENV DEFAULT_MODEL=${DEFAULT_MODEL} \
    DIARIZATION_MODEL=${DIARIZATION_MODEL} \
    HF_HUB_OFFLINE=${REQUIRE_ALL:+1} \
    LOG_FILE=/home/hansard/container_log.txt \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PYTHONPATH=/app/src \
    STATE_DIR=/var/lib/hansard
COPY test_input.json ./
COPY src src
USER 1000
LABEL org.opencontainers.image.title="Hansard" \
    org.opencontainers.image.description="Who said what, word for word: a RunPod serverless worker, or a server" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.revision="${REVISION}"
# Of the server, the other command: docker run --publish 8000:8000 --env API_KEYS=... hansard:slim python -m hansard.server
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m CMD ["python", "-m", "hansard.health"]
CMD ["python", "-u", "src/handler.py"]
