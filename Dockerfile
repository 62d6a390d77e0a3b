# Renders (and, with the train group, trains) in a container:
#
#     docker build -t lvsm-data .                               with torch
#     docker build -t lvsm-data --build-arg EXTRAS= .           rendering alone
#     docker run --rm lvsm-data                                 what works in it
#     docker run --rm -v "$PWD/data:/work/data" --shm-size=2g --user "$(id -u)" lvsm-data render --n 24 --out data/demo
#
# On a GPU add --gpus all; NVIDIA_DRIVER_CAPABILITIES below makes the driver's OptiX visible as well.

# Compilers and headers (pillow-simd is built from source) stay in this stage.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pipeline/__init__.py pipeline/system.py pipeline/
RUN python -m pipeline.system build
RUN python -m venv /opt/lvsm-data
COPY . .
# Optional groups of pyproject.toml; empty leaves torch out.
ARG EXTRAS=[train]
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/lvsm-data/bin/pip install -q -c requirements.lock ".${EXTRAS}" \
    && /opt/lvsm-data/bin/pip uninstall -q -y pillow \
    && /opt/lvsm-data/bin/pip install -q --force-reinstall --no-deps -c requirements.lock pillow-simd \
    && /opt/lvsm-data/bin/pip check

FROM python:3.11-slim-bookworm
COPY pipeline/__init__.py pipeline/system.py /tmp/system/pipeline/
# Only what is missing is installed. libjpeg: pillow-simd is linked against it. git, ffmpeg: some sources use them.
RUN cd /tmp/system && python -m pipeline.system run \
    && apt-get install -y --no-install-recommends libjpeg62-turbo git ffmpeg \
    && rm -rf /var/lib/apt/lists/* /tmp/system
COPY --from=build /opt/lvsm-data /opt/lvsm-data
RUN useradd --create-home lvsm && mkdir -p /work/data && chown -R lvsm /work
# HOME and USER: Blender and Ray ask for them, and `docker run --user` has neither.
ENV PATH=/opt/lvsm-data/bin:$PATH HOME=/tmp USER=lvsm NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility
USER lvsm
WORKDIR /work
ENTRYPOINT ["lvsm-data"]
CMD ["doctor"]
