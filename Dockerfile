# leadspan on a CPU, or on NVIDIA GPUs through the container toolkit: PyTorch's wheel brings its own CUDA libraries.
#   docker build -t leadspan .
#   docker run --rm -it --gpus all -v "$PWD:/work" leadspan distill recipe.yaml      (without --gpus all: on the CPU)
# For CPUs alone, some gigabytes smaller, name the index of PyTorch's CPU wheels:
#   docker build -t leadspan --build-arg PIP_OPTIONS="--extra-index-url ADDRESS" .
FROM python:3.11-slim
ARG PIP_OPTIONS=""
ARG EXTRAS="gguf"
# A compiler: torch.compile and Triton build their kernels when they are first used.
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ${PIP_OPTIONS} -c constraints.txt ".[${EXTRAS}]"
ENV HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /work
ENTRYPOINT ["leadspan"]
CMD ["--help"]
