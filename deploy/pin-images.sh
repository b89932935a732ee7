#!/bin/sh
# Names each image by its digest as well, so that every build and every start takes the same bytes. Asks the registries, and changes the
# files in place. Run it again to take what was published since, and commit what it has changed.
set -eu
cd "$(dirname "$0")/.."
files='Dockerfile db/deploy/minio.Dockerfile db/deploy/postgres.Dockerfile deploy/waf/Dockerfile'
files="$files compose.yaml compose.seaweedfs.yaml compose.observability.yaml"

# shellcheck disable=SC2086
images=$(sed -nE 's/^(FROM| *image:) +([a-z0-9./-]+:[A-Za-z0-9._-]+).*/\2/p' $files | sort -u)
for image in $images; do
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
  if ! echo "$digest" | grep -qxE 'sha256:[0-9a-f]{64}'; then
    echo "the registry gives no digest of $image: $digest" >&2
    exit 1
  fi
  # shellcheck disable=SC2086
  sed -E -i "s#^((FROM| *image:) +)$image(@sha256:[0-9a-f]{64})?( .*)?\$#\\1$image@$digest\\4#" $files
  echo "$image@$digest"
done
