#!/bin/sh
# Sets the passwords of the login roles. Runs once, after roles.sql, when the database of compose.yaml is created.
# aggios_backup can't log in before it has a password, which compose.backup.yaml asks for.
set -eu
# the URLs of the roles have their passwords: DATABASE_URL_FILE and DATABASE_OWNER_URL_FILE
password_in() { sed -n 's,^postgres://[^:]*:\([^@]*\)@.*,\1,p' "$1"; }
AGGIOS_APP_PASSWORD=${AGGIOS_APP_PASSWORD:-$(password_in "$DATABASE_URL_FILE")}
AGGIOS_OWNER_PASSWORD=${AGGIOS_OWNER_PASSWORD:-$(password_in "$DATABASE_OWNER_URL_FILE")}
if [ -n "${AGGIOS_BACKUP_PASSWORD_FILE:-}" ]; then AGGIOS_BACKUP_PASSWORD=$(cat "$AGGIOS_BACKUP_PASSWORD_FILE"); fi
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
