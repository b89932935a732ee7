#!/bin/sh
# Makes the bucket and the key of the backend on MinIO. Any S3 will do with the same policy.
set -eu
mc alias set local http://minio:9000 aggios "$MINIO_ROOT_PASSWORD"
mc mb --ignore-existing local/aggios
mc admin policy create local aggios-backend /setup/bucket-policy.json
mc admin user add local aggios-app "$S3_SECRET_KEY"
mc admin policy attach local aggios-backend --user aggios-app || mc admin user info local aggios-app | grep -q aggios-backend
