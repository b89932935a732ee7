#!/bin/sh
# Starts the Redis of compose.yaml. It stores nothing on disk, because everything in it may be lost. Its one user may run only
# the commands that the product needs, on the product's own keys and channels. This user can't list keys, read or change
# settings, or administer the server.
#
#   REDIS_PASSWORD=… redis.sh [options of redis-server]
set -eu
# the configuration comes on standard input, so that the password shows in no process list
exec redis-server "$@" - <<CONFIGURATION
save ""
appendonly no
maxmemory 200mb
maxmemory-policy allkeys-lru
user default off
user aggios on >$REDIS_PASSWORD ~aggios:* &aggios:* -@all +ping +get +set +pttl +evalsha +script|load +publish +subscribe
CONFIGURATION
