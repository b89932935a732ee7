#!/bin/sh
# Creates the backend's bucket and key on MinIO, with the names from the settings. Can be repeated: a key whose secret has
# changed gets the new one. Any other S3 store works with the same policy.
#
#   MINIO_ROOT_USER=… MINIO_ROOT_PASSWORD=… S3_BUCKET=… S3_ACCESS_KEY=… S3_SECRET_KEY=… minio.sh [address] [policy]
set -eu
# NAME_FILE may name a file with the value
for name in MINIO_ROOT_PASSWORD S3_ACCESS_KEY S3_SECRET_KEY; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then export "$name=$(cat "$file")"; fi
done
policy=$(mktemp)
trap 'rm -f "$policy"' EXIT
sed "s/BUCKET/$S3_BUCKET/g" "${2:-/setup/bucket-policy.json}" > "$policy"
mc alias set local "${1:-http://minio:9000}" "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD"
mc mb --ignore-existing "local/$S3_BUCKET"
mc admin policy create local aggios-backend "$policy"
mc admin user add local "$S3_ACCESS_KEY" "$S3_SECRET_KEY"
mc admin policy attach local aggios-backend --user "$S3_ACCESS_KEY" ||
  mc admin user info local "$S3_ACCESS_KEY" | grep -q aggios-backend
