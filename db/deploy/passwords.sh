#!/bin/sh
# Sets the passwords of the login roles. Runs once, after roles.sql, when the database of compose.yaml is created.
# aggios_backup can't log in before it has a password, which compose.backup.yaml asks for.
set -eu
psql --set ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" \
  --set app="$AGGIOS_APP_PASSWORD" --set owner="$AGGIOS_OWNER_PASSWORD" <<'SQL'
alter role aggios_app login password :'app';
alter role aggios_owner login password :'owner';
SQL

if [ -n "${AGGIOS_BACKUP_PASSWORD:-}" ]; then
  psql --set ON_ERROR_STOP=1 --username postgres --dbname "$POSTGRES_DB" --set backup="$AGGIOS_BACKUP_PASSWORD" <<'SQL'
alter role aggios_backup login password :'backup';
SQL
fi
