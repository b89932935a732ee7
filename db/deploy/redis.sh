#!/bin/sh
# Starts the Redis of compose.yaml, which keeps nothing that may not be lost. Its one user can do what the product does: it
# counts under keys of its own and speaks on channels of its own. It can't look for keys, read or change settings, or administer.
#
#   REDIS_PASSWORD=… redis.sh [options of redis-server]
set -eu
# the password comes with the configuration, so that no list of processes shows it
exec redis-server "$@" - <<CONFIGURATION
save ""
appendonly no
maxmemory 200mb
maxmemory-policy allkeys-lru
user default off
user aggios on >$REDIS_PASSWORD ~aggios:* &aggios:* -@all +ping +get +set +pttl +evalsha +script|load +publish +subscribe
CONFIGURATION
