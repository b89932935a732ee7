#!/bin/sh
# Sets the passwords of the two login roles. Runs once, after roles.sql, when the database of compose.yaml is created.
set -eu
psql --set ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" \
  --set app="$AGGIOS_APP_PASSWORD" --set owner="$AGGIOS_OWNER_PASSWORD" <<'SQL'
alter role aggios_app login password :'app';
alter role aggios_owner login password :'owner';
SQL
