# syntax=docker/dockerfile:1

# Builds MinIO and its client for compose.yaml from source, because no image has been published since the fix for
# CVE-2025-62506. The version is the one that the tests run (.ci/run); Go's checksum database verifies both.
FROM golang:1.26-bookworm AS build
ARG MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
ARG MC_VERSION=v0.0.0-20250313080218-cf909e1063a9
ENV CGO_ENABLED=0 \
  GOBIN=/programs \
  GOFLAGS=-buildvcs=false
RUN go install -ldflags '-s -w' "github.com/minio/minio@${MINIO_VERSION}" \
  && go install -ldflags '-s -w' "github.com/minio/mc@${MC_VERSION}"

FROM debian:bookworm-slim
COPY --from=build /programs /usr/local/bin
ENTRYPOINT ["minio"]
