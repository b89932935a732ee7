#!/bin/sh
# Creates the backend's bucket on SeaweedFS, because the backend's key may not create it. Can be repeated.
#
#   S3_BUCKET=… seaweedfs-setup.sh [address of the master]
set -eu
ask() { echo "$1" | weed shell "-master=${2:-seaweedfs:9333}"; }
ask "s3.bucket.list" "${1:-}" | grep -q "^ *$S3_BUCKET\b" || ask "s3.bucket.create -name $S3_BUCKET" "${1:-}"
ask "s3.bucket.list" "${1:-}" | grep -q "^ *$S3_BUCKET\b"
