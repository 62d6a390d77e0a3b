# Renders (and, with the train group, trains) in a container, on one machine or as a node of a Ray cluster (deploy/):
#
#     docker build -t lvsm-data .                               with torch
#     docker build -t lvsm-data --build-arg EXTRAS= .           rendering alone
#     docker run --rm lvsm-data                                 what works in it: lvsm-data doctor
#     docker run --rm -v "$PWD/data:/work/data" --shm-size=2g --user "$(id -u)" lvsm-data lvsm-data render --n 24 --out data/demo
#
# On a GPU add --gpus all; NVIDIA_DRIVER_CAPABILITIES below makes the driver's OptiX visible as well.

# Compilers and headers (pillow-simd is built from source) stay in this stage.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pipeline/__init__.py pipeline/system.py pipeline/
RUN python -m pipeline.system build
RUN python -m venv /opt/lvsm-data
COPY . .
# Optional groups of pyproject.toml; empty leaves torch out. boto3: with it Ray's autoscaler starts machines of AWS.
ARG EXTRAS=[train]
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/lvsm-data/bin/pip install -q -c requirements.lock ".${EXTRAS}" boto3 \
    && /opt/lvsm-data/bin/pip uninstall -q -y pillow \
    && /opt/lvsm-data/bin/pip install -q --force-reinstall --no-deps -c requirements.lock pillow-simd \
    && /opt/lvsm-data/bin/pip check

FROM python:3.11-slim-bookworm
COPY pipeline/__init__.py pipeline/system.py /tmp/system/pipeline/
# Only what is missing is installed. libjpeg: pillow-simd is linked against it. git, ffmpeg: some sources use them.
# openssh-client, rsync: how Ray's autoscaler reaches machines. wget: KubeRay's probes, where Ray is older than 2.53.
RUN cd /tmp/system && python -m pipeline.system run && apt-get update -q \
    && apt-get install -y --no-install-recommends libjpeg62-turbo git ffmpeg openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* /tmp/system
COPY --from=build /opt/lvsm-data /opt/lvsm-data
# `ray up` works in login shells, and those set PATH anew.
RUN echo 'PATH=/opt/lvsm-data/bin:$PATH' > /etc/profile.d/lvsm-data.sh \
    && useradd --uid 1000 --create-home lvsm && mkdir -p /work/data && chown -R lvsm /work
# HOME and USER: Blender and Ray ask for them, and `docker run --user` has neither.
ENV PATH=/opt/lvsm-data/bin:$PATH HOME=/tmp USER=lvsm NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility \
    RAY_USAGE_STATS_ENABLED=0
# A number, since Kubernetes cannot tell that a name is not root's.
USER 1000
WORKDIR /work
# No ENTRYPOINT: `ray up` runs `docker run IMAGE bash`, Kubernetes and Ray jobs start `ray` and `lvsm-data` by name.
CMD ["lvsm-data", "doctor"]
