# The pipeline in a container, for the CPU or, by a build argument, for NVIDIA GPUs.
#
#   docker build -t budgeted-lora .                                      CPU build of torch
#   docker build -t budgeted-lora:cuda --build-arg TORCH_INDEX= .        torch as the lock has it: CUDA and its libraries
#   docker run --rm -v "$PWD/results:/app/results" -v "$PWD/reports:/app/reports" \
#       budgeted-lora snakemake main --cores all --config scale=smoke
#   docker run --gpus all ... budgeted-lora:cuda ...                     needs NVIDIA's container toolkit
#
# Mounted folders must be writable for the user below: build with --build-arg UID="$(id -u)", or run with --user.
# Checked: hadolint's rules. Not tried: to build or run it, with or without a GPU. Rules name no `container:`, since no
# image is published; the whole of Snakemake runs inside this one.
FROM python:3.12.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG UID=1000

WORKDIR /app
COPY requirements.lock ./
# Any build of torch satisfies the version in the lock, so the one that is installed first stays.
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"; \
    fi \
    && pip install --no-cache-dir -r requirements.lock

COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable /app \
    && useradd --no-log-init --create-home --uid "$UID" runner \
    && chown runner /app \
    && install --directory --owner runner results reports

USER $UID
CMD ["budgeted-lora", "--help"]
