#!/bin/sh
# Gives the two roles that log in their passwords. Runs once, when the database of compose.yaml is made, after roles.sql.
set -eu
psql --set ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" \
  --set app="$AGGIOS_APP_PASSWORD" --set owner="$AGGIOS_OWNER_PASSWORD" <<'SQL'
alter role aggios_app login password :'app';
alter role aggios_owner login password :'owner';
SQL
