#!/bin/sh
# Rolls the processes of this machine to a version: one after another, while the others serve.
#
#   deploy/systemd/roll.sh 0.2.0    # to the version in /opt/aggios/releases/0.2.0
#   deploy/systemd/roll.sh 0.1.0    # and back again
#
# When a process does not become ready within WAIT seconds, it is started again with the version before, and the others are left
# alone. docs/upgrades.md says how the folders and units are set up.
set -eu
version=${1:?which version?}
home=${AGGIOS_HOME:-/opt/aggios}
WAIT=${WAIT:-120}
# how long Traefik takes to find a server: its health check asks every second
NOTICE=3

# changes the link in one step, so that a process that starts meanwhile finds one version or the other
use() {
  ln -sfn "$1" "$home/next"
  mv -T "$home/next" "$home/current"
}

become_ready() {
  port=${1#aggios@}
  port=${port%.service}
  waited=0
  until curl --silent --fail --output /dev/null --max-time 5 "http://127.0.0.1:$port/api/v1/health/ready"; do
    waited=$((waited + 1))
    [ "$waited" -lt "$WAIT" ] || return 1
    sleep 1
  done
}

if [ ! -d "$home/releases/$version" ]; then
  echo "there is no $home/releases/$version" >&2
  exit 1
fi
before=$(readlink "$home/current")
# also processes that are just starting, or that systemd starts again and again
listed=$(systemctl list-units --plain --no-legend --state=active,activating,reloading 'aggios@*.service')
units=$(echo "$listed" | awk '{ print $1 }')
if [ -z "$units" ]; then
  echo 'no process runs: systemctl enable --now aggios@8081 starts the first one' >&2
  exit 1
fi

# the version before serves on with the new schema; without the new schema nothing is replaced
systemctl start "aggios-migrate@$version.service"

use "releases/$version"
for unit in $units; do
  systemctl restart "$unit"
  if ! become_ready "$unit"; then
    journalctl --unit "$unit" --lines 50 --no-pager >&2
    use "$before"
    systemctl restart "$unit"
    echo "$unit was not ready within $WAIT s: it has the version before again" >&2
    exit 1
  fi
  sleep "$NOTICE"
  echo "$unit runs $version"
done
