#!/bin/sh
# Starts the Redis of compose.yaml. It stores nothing on disk, because everything in it may be lost. Its one user may run only
# the commands that the product needs, on the product's own keys and channels. This user can't list keys, read or change
# settings, or administer the server.
#
#   REDIS_PASSWORD=… redis.sh [options of redis-server]
#
# In its place REDIS_URL_FILE may name the file with the URL of the product, and REDIS_ADMIN_URL_FILE that of a user who may change the
# password of the other: npm run rotate -- redis.
set -eu
password_in() { sed -n 's,^redis://[^:]*:\([^@]*\)@.*,\1,p' "$1"; }
REDIS_PASSWORD=${REDIS_PASSWORD:-$(password_in "$REDIS_URL_FILE")}
admin=
if [ -n "${REDIS_ADMIN_URL_FILE:-}" ]; then
  admin="user admin on >$(password_in "$REDIS_ADMIN_URL_FILE") -@all +acl|setuser +acl|getuser"
fi
# the configuration comes on standard input, so that the password shows in no process list
exec redis-server "$@" - <<CONFIGURATION
save ""
appendonly no
maxmemory 200mb
maxmemory-policy allkeys-lru
user default off
user aggios on >$REDIS_PASSWORD ~aggios:* &aggios:* -@all +ping +get +set +pttl +evalsha +script|load +publish +subscribe
$admin
CONFIGURATION
