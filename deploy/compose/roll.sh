#!/bin/sh
# Rolls the backend to the version of this folder: one replica after another, while the others serve.
#
#   git checkout v0.2.0 && deploy/compose/roll.sh    # to a version
#   git checkout v0.1.0 && deploy/compose/roll.sh    # and back again
#
# A new replica is added first, and an old one ends when the new one is ready. When a new one does not become ready within WAIT
# seconds, it is removed again, and the old ones serve on. COMPOSE_FILE names your compose files, as for docker compose.
set -eu
cd "$(dirname "$0")/../.."
export COMPOSE_FILE="${COMPOSE_FILE:-compose.yaml:compose.production.yaml}"
WAIT=${WAIT:-120}
# how long Traefik takes to find a server: its health check asks every second
NOTICE=3

is_ready() {
  docker exec "$1" node -e \
    "fetch('http://127.0.0.1:' + process.env.PORT + '/api/v1/health/ready').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"
}

old=$(docker compose ps --quiet backend)
if [ -z "$old" ]; then
  echo 'no replica runs: docker compose up -d starts the first ones' >&2
  exit 1
fi
count=$(echo "$old" | wc -l)

services=$(docker compose --profile restore config --services)
# with backups there are other services that run the product
others=$(echo "$services" | grep --line-regexp --extended-regexp 'backup-files|restore-files|restore-agency' || true)
# shellcheck disable=SC2086
docker compose build migrate backend $others
# the version before serves on with the new schema; without the new schema nothing is replaced
docker compose run --rm --no-deps migrate

for replaced in $old; do
  before=$(docker compose ps --quiet backend)
  docker compose up --detach --no-deps --no-recreate --scale backend=$((count + 1)) backend
  now=$(docker compose ps --quiet backend)
  if ! new=$(echo "$now" | grep --invert-match --line-regexp --fixed-strings "$before"); then
    echo 'the new replica ended at once: the replicas that are left serve on' >&2
    exit 1
  fi

  waited=0
  until is_ready "$new"; do
    waited=$((waited + 1))
    if [ "$waited" -ge "$WAIT" ]; then
      docker logs --tail 50 "$new" >&2
      docker stop "$new"
      docker rm "$new"
      echo "the new replica was not ready within $WAIT s: it is removed, and the replicas that are left serve on" >&2
      exit 1
    fi
    sleep 1
  done
  sleep "$NOTICE"

  # lets the requests under way end, for as long as stop_grace_period says
  docker stop "$replaced"
  docker rm "$replaced"
done

case "$others" in
  *backup-files*)
    copying=$(docker compose ps --quiet backup-files)
    [ -z "$copying" ] || docker compose up --detach --no-deps backup-files
    ;;
esac
echo "$count replicas were replaced"
