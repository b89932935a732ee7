#!/bin/sh
# Makes the secrets of the compose files, each in a file of its own that only the containers which need it get to see.
#
#   deploy/compose/secrets.sh
#
# They lie in SECRETS_DIR, which is ./secrets without the variable. A file that is there stays as it is, so the command can be repeated.
# A secret that stands in .env, where versions before had it, is taken over. Then strike it there.
# Files that are empty belong to services that are not used: a mail server, providers of sign-ins. Write into those that you need.
set -eu
cd "$(dirname "$0")/../.."
folder=${SECRETS_DIR:-secrets}
umask 077
mkdir -p "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# The value of a variable: of the environment, or else of .env, or else the one that is given.
value() {
  eval "found=\${$1:-}"
  if [ -z "$found" ] && [ -f .env ]; then found=$(sed -n "s/^$1=//p" .env | tail -n 1); fi
  printf '%s' "${found:-${2-}}"
}

# Each container reads the files as a user of its own, so the files are open and the folder is closed.
make() {
  if [ -e "$folder/$1" ]; then return; fi
  printf '%s\n' "$2" > "$folder/$1.new"
  chmod 444 "$folder/$1.new"
  mv "$folder/$1.new" "$folder/$1"
  echo "made $folder/$1"
}

# The password in the URL of a file that is there already.
password_in() {
  if [ -e "$folder/$1" ]; then sed -n 's,^[a-z]*://[^:]*:\([^@]*\)@.*,\1,p' "$folder/$1"; fi
}

tls='?sslmode=verify-full&sslrootcert=/certificates/ca.crt'
postgres=$(password_in database_admin_url)
postgres=${postgres:-$(value POSTGRES_PASSWORD "$(random)")}
owner=$(password_in database_owner_url)
owner=${owner:-$(value AGGIOS_OWNER_PASSWORD "$(random)")}
make jwt_secret "$(value JWT_SECRET "$(random)")"
make password_pepper "$(value PASSWORD_PEPPER "$(random)")"
make postgres_password "$postgres"
make database_url "postgres://aggios_app:$(value AGGIOS_APP_PASSWORD "$(random)")@postgres:5432/aggios$tls"
make database_owner_url "postgres://aggios_owner:$owner@postgres:5432/aggios$tls"
make redis_url "redis://aggios:$(value REDIS_PASSWORD "$(random)")@redis:6379"
make redis_admin_url "redis://admin:$(random)@redis:6379"
make minio_root_password "$(value MINIO_ROOT_PASSWORD "$(random)")"
make s3_access_key "$(value S3_ACCESS_KEY aggios-app)"
make s3_secret_key "$(value S3_SECRET_KEY "$(random)")"
# of services outside: nobody can make these up
make database_replica_url "$(value DATABASE_REPLICA_URL)"
make smtp_url "$(value SMTP_URL)"
make google_client_secret "$(value GOOGLE_CLIENT_SECRET)"
make github_client_secret "$(value GITHUB_CLIENT_SECRET)"
make otel_headers "$(value OTEL_EXPORTER_OTLP_HEADERS)"
make sentry_dsn "$(value SENTRY_DSN)"
make dns_api_token "$(value CF_DNS_API_TOKEN)"
# of compose.backup.yaml
make backup_password "$(value AGGIOS_BACKUP_PASSWORD "$(random)")"
make backup_s3_access_key "$(value BACKUP_S3_ACCESS_KEY)"
make backup_s3_secret_key "$(value BACKUP_S3_SECRET_KEY)"
# of compose.observability.yaml
make grafana_password "$(random)"
# the server that restore-agency reads from has the passwords of its time: write another URL if the owner had another one
make restore_database_url "postgres://aggios_owner:$owner@127.0.0.1:5432/aggios"
# for rotations: the administrator of PostgreSQL
make database_admin_url "postgres://postgres:$postgres@postgres:5432/aggios$tls"
