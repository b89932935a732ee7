#!/bin/sh
# Archives PostgreSQL to an S3 bucket and restores it from there, with barman's programs for clouds. docs/backups.md explains it.
#
#   backup.sh wal <path>                archives a file of the write-ahead log: archive_command = '/backup.sh wal %p'
#   backup.sh base                      makes a base backup, then removes what is older than BACKUP_DAYS
#   backup.sh schedule                  makes a base backup every BACKUP_HOURS, for ever
#   backup.sh list                      lists the base backups
#   backup.sh check                     ends with 1 and a reason when the backups are not what they should be
#   backup.sh restore <folder> [time]   fills an empty folder, so that a PostgreSQL started on it recovers to that time, or to the end
#   backup.sh scratch <folder> [time]   restores unless the folder is filled, and then runs a PostgreSQL on it for this machine only
#   backup.sh fetch-wal <name> <path>   gets a file of the log back (restore_command)
#
# BACKUP_S3_ENDPOINT, _REGION, _BUCKET, _ACCESS_KEY and _SECRET_KEY name the bucket; PGHOST, PGUSER and so on lead to the database.
# Each database cluster has a folder of its own in the bucket, named by its system identifier. So a new cluster overwrites nothing.
set -eu

: "${BACKUP_S3_BUCKET:?}" "${BACKUP_S3_ACCESS_KEY:?}" "${BACKUP_S3_SECRET_KEY:?}"
export AWS_ACCESS_KEY_ID="$BACKUP_S3_ACCESS_KEY" AWS_SECRET_ACCESS_KEY="$BACKUP_S3_SECRET_KEY"
export AWS_DEFAULT_REGION="${BACKUP_S3_REGION:-us-east-1}"
# other servers than Amazon's do not know the newest checksums
export AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
export PYTHONWARNINGS=ignore
place="s3://$BACKUP_S3_BUCKET/postgres"
hours=${BACKUP_HOURS:-24}
days=${BACKUP_DAYS:-14}

fail() {
  echo "$1" >&2
  exit 1
}

# Runs a program of barman for the store.
barman() {
  program=$1
  shift
  if [ -n "${BACKUP_S3_ENDPOINT:-}" ]; then set -- --endpoint-url "$BACKUP_S3_ENDPOINT" --addressing-style path "$@"; fi
  "barman-cloud-$program" --cloud-provider aws-s3 "$@"
}

# The name of the cluster whose folder is the working directory, as it is for commands of the server.
own_cluster() {
  pg_controldata . | sed -n 's/^Database system identifier: *//p'
}

running_cluster() {
  psql --no-psqlrc --tuples-only --no-align --command 'select system_identifier from pg_control_system()'
}

# The cluster of BACKUP_CLUSTER, or the only one in the bucket.
stored_cluster() {
  if [ -n "${BACKUP_CLUSTER:-}" ]; then
    echo "$BACKUP_CLUSTER"
    return
  fi
  found=$(python3 -c '
import os, boto3, botocore.config
bucket, endpoint = os.environ["BACKUP_S3_BUCKET"], os.environ.get("BACKUP_S3_ENDPOINT") or None
style = botocore.config.Config(s3={"addressing_style": "path"}) if endpoint else None
pages = boto3.client("s3", endpoint_url=endpoint, config=style).get_paginator("list_objects_v2")
for page in pages.paginate(Bucket=bucket, Prefix="postgres/", Delimiter="/"):
    for folder in page.get("CommonPrefixes", []):
        print(folder["Prefix"].split("/")[1])
')
  case $(echo "$found" | grep -c .) in
    0) fail "the bucket $BACKUP_S3_BUCKET has no backup of a database" ;;
    1) echo "$found" ;;
    *) fail "the bucket has backups of several clusters, so name one in BACKUP_CLUSTER: $(echo "$found" | tr '\n' ' ')" ;;
  esac
}

# Prints the seconds since the newest base backup of a cluster was finished. Prints nothing when there is none.
age_of_base() {
  barman backup-list --format json "$place" "$1" | python3 -c '
import datetime, json, sys
done = [each["end_time_iso"] for each in json.load(sys.stdin)["backups_list"] if each["status"] == "DONE"]
if done:
    newest = max(map(datetime.datetime.fromisoformat, done))
    print(int((datetime.datetime.now(datetime.timezone.utc) - newest).total_seconds()))
'
}

make_base() {
  cluster=$(running_cluster)
  # without --immediate-checkpoint PostgreSQL spreads the checkpoint over minutes, and disturbs nobody
  barman backup --gzip --jobs 1 --dbname "${PGDATABASE:-aggios}" ${BACKUP_ENCRYPTION:+--encryption "$BACKUP_ENCRYPTION"} \
    ${BACKUP_AT_ONCE:+--immediate-checkpoint} "$place" "$cluster"
  # the newest backup from before the window stays, because recovery to the window begins with it
  barman backup-delete --retention-policy "RECOVERY WINDOW OF $days DAYS" --minimum-redundancy 1 "$place" "$cluster"
  echo "base backup of $cluster is done"
}

schedule() {
  trap 'exit 0' TERM INT
  while :; do
    age=$(running_cluster | { read -r cluster && age_of_base "$cluster"; } || echo unknown)
    case $age in
      unknown) echo 'the database or the bucket can not be reached, and is tried again' >&2 ;;
      *) if [ "${age:-$((hours * 3600))}" -ge $((hours * 3600)) ]; then make_base || echo 'the base backup failed, and is tried again' >&2; fi ;;
    esac
    sleep "${BACKUP_PAUSE:-300}" &
    wait $!
  done
}

check() {
  cluster=$(running_cluster) || fail 'the database can not be reached'
  age=$(age_of_base "$cluster") || fail 'the bucket can not be read'
  [ -n "$age" ] || fail 'there is no base backup'
  [ "$age" -le $(((hours + 2) * 3600)) ] || fail "the newest base backup is $((age / 3600)) hours old"
  # the log is switched once in archive_timeout while anything is written
  late=$(psql --no-psqlrc --tuples-only --no-align --command "
    select case when current_setting('archive_mode') = 'off' then 'archive_mode is off'
      when last_archived_time is null then 'nothing was ever archived'
      when last_failed_time > last_archived_time then 'archiving fails since ' || last_failed_time || ': ' || last_failed_wal
    end from pg_stat_archiver")
  [ -z "$late" ] || fail "$late"
  echo "the newest base backup is $((age / 60)) minutes old, and the log is archived"
}

restore() {
  folder=$1
  [ -d "$folder" ] || fail "$folder is no folder"
  [ -z "$(ls -A "$folder")" ] || fail "$folder is not empty: move what it contains elsewhere first"
  time=
  if [ -n "${2:-}" ]; then
    time=$(python3 -c '
import datetime, sys
try:
    time = datetime.datetime.fromisoformat(sys.argv[1])
except ValueError:
    sys.exit(f"{sys.argv[1]} is no time: write it as 2026-11-29T10:15:00Z")
if time.tzinfo is None:
    sys.exit(f"{sys.argv[1]} has no time zone: write it as 2026-11-29T10:15:00Z")
print(time.astimezone(datetime.timezone.utc).isoformat(sep=" "))
' "$2")
  fi
  cluster=$(stored_cluster)
  barman restore ${time:+--target-time "$time"} "$place" "$cluster" auto "$folder"
  chmod 700 "$folder"
  {
    echo "restore_command = '\"$(realpath "$0")\" fetch-wal %f \"%p\"'"
    # paused servers would take no writes; without a time it recovers to the end of the archive
    echo "recovery_target_action = 'promote'"
    echo "recovery_target_timeline = 'latest'"
    echo "recovery_target_time = '$time'"
  } >> "$folder/postgresql.auto.conf"
  touch "$folder/recovery.signal"
  echo "$folder is ready: a PostgreSQL that starts on it recovers cluster $cluster to ${time:-the end of its archive}"
}

# The server archives nothing, so that it leaves no trace in the bucket.
scratch() {
  [ -s "$1/PG_VERSION" ] || restore "$@"
  exec postgres -D "$1" -c archive_mode=off -c listen_addresses=127.0.0.1 -c port="${PGPORT:-5432}" -c unix_socket_directories= \
    -c hba_file="$1/pg_hba.conf" -c max_connections="${SCRATCH_CONNECTIONS:-200}"
}

case ${1:-} in
  wal) barman wal-archive --gzip ${BACKUP_ENCRYPTION:+--encryption "$BACKUP_ENCRYPTION"} "$place" "$(own_cluster)" "$2" ;;
  fetch-wal) barman wal-restore "$place" "$(own_cluster)" "$2" "$3" ;;
  base) make_base ;;
  schedule) schedule ;;
  list) barman backup-list "$place" "$(stored_cluster)" ;;
  check) check ;;
  restore) restore "${2:?name the folder}" "${3:-}" ;;
  scratch) scratch "${2:?name the folder}" "${3:-}" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" && exit 64 ;;
esac
