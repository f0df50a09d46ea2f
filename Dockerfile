# dnstrail's image: Debian's BCC and Python and the locked Python packages, and of those only what is used. No shell, no
# package manager, no compiler but the LLVM inside BCC, no kernel headers. deploy/image/build builds it, so does
# `docker build .`; amd64 and arm64.
ARG BASE=docker.io/library/debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends binutils python3-pip >/dev/null

WORKDIR /build
COPY deploy/image/root-file-system deploy/image/stand-in deploy/image/take-out deploy/image/not-needed-of-debian ./
RUN ./root-file-system /system

# The secret is for networks whose proxy has an authority of its own: a file of certificates to trust.
COPY requirements/run.txt ./
RUN --mount=type=secret,id=certificates \
    if [ -f /run/secrets/certificates ]; then export PIP_CERT=/run/secrets/certificates; fi; \
    python3 -m pip download --quiet --no-cache-dir --only-binary :all: --require-hashes --requirement run.txt --dest wheels

COPY pyproject.toml README.md LICENSE source/
COPY bpf source/bpf
COPY agent source/agent
COPY deploy/image/install-python deploy/image/not-needed-of-python ./
RUN ./install-python source wheels /python /system

FROM scratch
COPY --from=build /system /
COPY --from=build /python /
# Version, revision and date are the builder's to say, by --label.
LABEL org.opencontainers.image.title="dnstrail" \
      org.opencontainers.image.description="eBPF node agent that says where and why a DNS lookup was lost" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only" \
      org.opencontainers.image.source="https://github.com/dnstrail/dnstrail"
# The loader keeps the words of LLVM and of the verifier in a file for a moment; this place is memory, and always there.
ENV PATH=/usr/local/bin:/usr/bin \
    TMPDIR=/dev/shm \
    PYTHONDONTWRITEBYTECODE=1
USER 0:0
ENTRYPOINT ["dnstrail"]
CMD ["run"]
