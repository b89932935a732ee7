#!/bin/sh
# Starts the SeaweedFS of compose.seaweedfs.yaml with one key that may access the objects of one bucket only.
#
#   S3_BUCKET=… S3_ACCESS_KEY=… S3_SECRET_KEY=… seaweedfs.sh [options of weed server]
set -eu
# NAME_FILE may name a file with the value
for name in S3_ACCESS_KEY S3_SECRET_KEY; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then export "$name=$(cat "$file")"; fi
done
umask 077
# in a file, so that the secret shows in no process list
settings=$(mktemp)
cat > "$settings" <<SETTINGS
{
  "identities": [
    {
      "name": "backend",
      "credentials": [{ "accessKey": "$S3_ACCESS_KEY", "secretKey": "$S3_SECRET_KEY" }],
      "actions": ["Read:$S3_BUCKET", "Write:$S3_BUCKET", "List:$S3_BUCKET"]
    }
  ]
}
SETTINGS
exec weed server -s3 "-s3.config=$settings" -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false \
  -master.volumeSizeLimitMB=1024 -volume.max=0 "$@"
