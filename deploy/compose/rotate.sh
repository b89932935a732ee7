#!/bin/sh
# Replaces a secret of the compose files while the containers run: npm run rotate, in a container that may write the files.
#
#   deploy/compose/rotate.sh jwt
#   deploy/compose/rotate.sh jwt --finish --yes
#   deploy/compose/rotate.sh s3 --access-key-file /secrets/new_access_key --secret-key-file /secrets/new_secret_key
#
# The folder of the secrets is /secrets in that container. docs/secrets.md has all of them. COMPOSE_FILE names your compose files, as
# for docker compose.
set -eu
cd "$(dirname "$0")/../.."
folder=$(cd "${SECRETS_DIR:-secrets}" && pwd)
set -- backend node src/cli/rotate.ts "$@" --listener http://backend:9464
for name in jwt_secret password_pepper database_url database_replica_url redis_url s3_access_key s3_secret_key smtp_url \
  google_client_secret github_client_secret database_admin_url redis_admin_url; do
  set -- -e "$(echo "$name" | tr '[:lower:]' '[:upper:]')_FILE=/secrets/$name" "$@"
done
# the files belong to who made them, and only this container may write them
exec docker compose run --rm --no-deps --user 0:0 --cap-add DAC_OVERRIDE --volume "$folder:/secrets" "$@"
