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
# A restored cluster keeps its identifier and archives into the same folder, on a timeline of its own: BACKUP_TIMELINE names the one to
# restore, where there are several.
set -eu
# NAME_FILE may name a file with the value
for name in BACKUP_S3_ACCESS_KEY BACKUP_S3_SECRET_KEY PGPASSWORD; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then export "$name=$(cat "$file")"; fi
done

: "${BACKUP_S3_BUCKET:?}" "${BACKUP_S3_ACCESS_KEY:?}" "${BACKUP_S3_SECRET_KEY:?}"
export AWS_ACCESS_KEY_ID="$BACKUP_S3_ACCESS_KEY" AWS_SECRET_ACCESS_KEY="$BACKUP_S3_SECRET_KEY"
export AWS_DEFAULT_REGION="${BACKUP_S3_REGION:-us-east-1}"
# other servers than Amazon's do not know the newest checksums
export AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
export PYTHONWARNINGS=ignore
place="s3://$BACKUP_S3_BUCKET/postgres"
hours=${BACKUP_HOURS:-24}
# seconds in which a full file of the log should be in the archive
late_after=${BACKUP_LATE_AFTER:-600}
# How many full files of the log are not in the archive. An archive_command that ends by a signal, or with more than 125, is not counted as
# a failure by pg_stat_archiver: PostgreSQL starts its archiver anew, and so on for ever. The server of the product asks the same
# (db/queries/operations/archive.ts).
waiting_files="case when last_archived_wal ~ '^[0-9A-F]{24}'
  then div(pg_current_wal_lsn() - '0/0'::pg_lsn, pg_size_bytes(current_setting('wal_segment_size'))) - 1
    - (pg_split_walfile_name(left(last_archived_wal, 24))).segment_number end"
days=${BACKUP_DAYS:-14}

fail() {
  echo "$1" >&2
  exit 1
}

# the server of the product is asked the same of its own settings (src/config/production.ts)
case ${BACKUP_S3_ENDPOINT:-} in
  http://*)
    host=$(python3 -c 'import sys, urllib.parse; print(urllib.parse.urlsplit(sys.argv[1]).hostname or "")' "$BACKUP_S3_ENDPOINT")
    case $host in
      127.*[!0-9.]*) fail 'BACKUP_S3_ENDPOINT: must begin with https:// to another host' ;;
      localhost | 127.* | ::1) ;;
      *.* | *:* | '') fail 'BACKUP_S3_ENDPOINT: must begin with https:// to another host' ;;
    esac
    ;;
esac

# Runs a program of barman for the store.
barman() {
  program=$1
  shift
  if [ -n "${BACKUP_S3_ENDPOINT:-}" ]; then set -- --endpoint-url "$BACKUP_S3_ENDPOINT" --addressing-style path "$@"; fi
  "barman-cloud-$program" --cloud-provider aws-s3 "$@"
}

# Prints the name of the cluster whose folder is the working directory, as it is for commands of the server. Fails when there is none.
own_cluster() {
  facts=$(LC_ALL=C pg_controldata .) || fail "pg_controldata can not read the cluster in $PWD"
  named=$(echo "$facts" | sed -n 's/^Database system identifier: *\([0-9][0-9]*\)$/\1/p')
  [ -n "$named" ] || fail "pg_controldata does not name the cluster in $PWD"
  echo "$named"
}

# Asks the running server for one value. Fails when the answer is empty.
ask() {
  answer=$(psql --no-psqlrc --tuples-only --no-align --command "$1") || return 1
  [ -n "$answer" ] || fail "the database gives no answer to: $1"
  echo "$answer"
}

running_cluster() {
  ask 'select system_identifier from pg_control_system()'
}

running_timeline() {
  ask "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
}

# The beginning of programs that read the bucket.
open_bucket='
import datetime, gzip, json, os, re, sys, boto3, botocore.config
bucket, endpoint = os.environ["BACKUP_S3_BUCKET"], os.environ.get("BACKUP_S3_ENDPOINT") or None
style = botocore.config.Config(s3={"addressing_style": "path"}) if endpoint else None
client = boto3.client("s3", endpoint_url=endpoint, config=style)
pages = client.get_paginator("list_objects_v2")
'

# The cluster of BACKUP_CLUSTER, or the only one in the bucket.
stored_cluster() {
  if [ -n "${BACKUP_CLUSTER:-}" ]; then
    echo "$BACKUP_CLUSTER"
    return
  fi
  found=$(python3 -c "$open_bucket"'
for page in pages.paginate(Bucket=bucket, Prefix="postgres/", Delimiter="/"):
    for folder in page.get("CommonPrefixes", []):
        print(folder["Prefix"].split("/")[1])
') || fail "the bucket $BACKUP_S3_BUCKET can not be read"
  case $(echo "$found" | grep -c .) in
    0) fail "the bucket $BACKUP_S3_BUCKET has no backup of a database" ;;
    1) echo "$found" ;;
    *) fail "the bucket has backups of several clusters, so name one in BACKUP_CLUSTER: $(echo "$found" | tr '\n' ' ')" ;;
  esac
}

# Prints a timeline of a cluster and the newest base backup on the way to it, from before a time if one is given. A timeline is reached
# from base backups of its own, and from those that its ancestors finished before it branched off.
#
# Fails when there are several timelines and BACKUP_TIMELINE names none. A guess would restore the rows of the wrong server.
choose_base() {
  bases=$(barman backup-list --format json "$place" "$1") || fail 'the base backups can not be listed'
  printf '%s' "$bases" | python3 -c "$open_bucket"'
cluster, before, wanted = sys.argv[1:]
bases = [each for each in json.load(sys.stdin)["backups_list"] if each["status"] == "DONE"]
archived, histories = {}, {}
for page in pages.paginate(Bucket=bucket, Prefix=f"postgres/{cluster}/wals/"):
    for each in page.get("Contents", []):
        name = each["Key"].rsplit("/", 1)[1].split(".")
        if name[1:2] == ["history"]:
            histories[int(name[0], 16)] = each["Key"]
        elif re.fullmatch("[0-9A-F]{24}", name[0]) and "partial" not in name:
            archived.setdefault(int(name[0][:8], 16), []).append(each["LastModified"])

def position(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)

def ancestors(timeline):
    if timeline not in histories:
        return []
    text = gzip.decompress(client.get_object(Bucket=bucket, Key=histories[timeline])["Body"].read()).decode()
    return [(int(number), position(end)) for number, end in re.findall(r"(?m)^\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)", text)]

def newest(timeline):
    ends = dict(ancestors(timeline))
    fitting = [
        each["backup_id"] for each in bases
        if (each["timeline"] == timeline or position(each["end_xlog"]) <= ends.get(each["timeline"], -1))
        and (not before or datetime.datetime.fromisoformat(each["end_time_iso"]) <= datetime.datetime.fromisoformat(before))
    ]
    return max(fitting, default=None)

def describe(timeline):
    line = f"  {timeline}:"
    if ancestors(timeline):
        line += f" branched off from {ancestors(timeline)[-1][0]},"
    times = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in sorted(archived.get(timeline, []))]
    return f"{line} archived from {times[0]} to {times[-1]}" if times else f"{line} nothing archived yet"

chosen = {each: newest(each) for each in sorted({*archived, *histories, *(each["timeline"] for each in bases)})}
chosen = {timeline: base for timeline, base in chosen.items() if base and (not wanted or timeline == int(wanted))}
if not chosen:
    sys.exit("there is no base backup" + (f" on the way to timeline {wanted}" if wanted else "") + (f" from before {before}" if before else ""))
if len(chosen) > 1:
    sys.exit("\n".join([f"cluster {cluster} has several timelines, so name one in BACKUP_TIMELINE:", *map(describe, chosen)]))
print(*chosen.popitem())
' "$1" "$2" "${BACKUP_TIMELINE:-}"
}

# Prints the seconds since the newest base backup of a cluster was finished on a timeline. Prints nothing when there is none.
age_of_base() {
  listed=$(barman backup-list --format json "$place" "$1") || return 1
  printf '%s' "$listed" | python3 -c '
import datetime, json, sys
done = [
    each["end_time_iso"] for each in json.load(sys.stdin)["backups_list"]
    if each["status"] == "DONE" and each["timeline"] == int(sys.argv[1])
]
if done:
    newest = max(map(datetime.datetime.fromisoformat, done))
    print(int((datetime.datetime.now(datetime.timezone.utc) - newest).total_seconds()))
' "$2"
}

# Nobody may call it in a condition, because no failure would end it there.
make_base() {
  cluster=$(running_cluster)
  mode=$(ask 'show archive_mode')
  [ "$mode" != off ] || fail 'archive_mode is off, and a base backup without the log that belongs to it can not be restored'
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
    age=$(cluster=$(running_cluster) && timeline=$(running_timeline) && age_of_base "$cluster" "$timeline" || echo unknown)
    case $age in
      unknown) echo 'the database or the bucket can not be reached, and is tried again' >&2 ;;
      *) if [ "${age:-$((hours * 3600))}" -ge $((hours * 3600)) ]; then "$0" base || echo 'the base backup failed, and is tried again' >&2; fi ;;
    esac
    sleep "${BACKUP_PAUSE:-300}" &
    wait $!
  done
}

check() {
  cluster=$(running_cluster) || fail 'the database can not be reached'
  timeline=$(running_timeline) || fail 'the database can not be reached'
  age=$(age_of_base "$cluster" "$timeline") || fail 'the bucket can not be read'
  [ -n "$age" ] || fail 'there is no base backup'
  [ "$age" -le $(((hours + 2) * 3600)) ] || fail "the newest base backup is $((age / 3600)) hours old"
  # the log is switched once in archive_timeout while anything is written
  late=$(psql --no-psqlrc --tuples-only --no-align --command "
    select case when current_setting('archive_mode') = 'off' then 'archive_mode is off'
      when last_archived_time is null then 'nothing was ever archived'
      when last_failed_time > last_archived_time then 'archiving fails since ' || last_failed_time || ': ' || last_failed_wal
      when last_archived_time < now() - make_interval(secs => $late_after) and waiting > 1
        then waiting || ' files of the log wait, and nothing was archived since ' || last_archived_time
    end from pg_stat_archiver, lateral (select $waiting_files as waiting) w") || fail 'the database can not be reached'
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
  case ${BACKUP_TIMELINE:-1} in 0* | *[!0-9]*) fail "BACKUP_TIMELINE: $BACKUP_TIMELINE is no number of a timeline" ;; esac
  cluster=$(stored_cluster)
  chosen=$(choose_base "$cluster" "$time")
  timeline=${chosen% *}
  barman restore "$place" "$cluster" "${chosen#* }" "$folder"
  chmod 700 "$folder"
  {
    echo "restore_command = '\"$(realpath "$0")\" fetch-wal %f \"%p\"'"
    # paused servers would take no writes; without a time it recovers to the end of the archive
    echo "recovery_target_action = 'promote'"
    # never the latest: a server that was restored for a rehearsal may have made that one
    echo "recovery_target_timeline = '$timeline'"
    echo "recovery_target_time = '$time'"
  } >> "$folder/postgresql.auto.conf"
  touch "$folder/recovery.signal"
  echo "$folder is ready: a PostgreSQL that starts on it recovers timeline $timeline of cluster $cluster to ${time:-the end of its archive}"
}

# The server archives nothing, so that it leaves no trace in the bucket.
scratch() {
  [ -s "$1/PG_VERSION" ] || restore "$@"
  exec postgres -D "$1" -c archive_mode=off -c listen_addresses=127.0.0.1 -c port="${PGPORT:-5432}" -c unix_socket_directories= \
    -c hba_file="$1/pg_hba.conf" -c max_connections="${SCRATCH_CONNECTIONS:-200}"
}

case ${1:-} in
  # each in a variable first: the shell forgets a failure among the words of a command
  wal)
    cluster=$(own_cluster)
    barman wal-archive --gzip ${BACKUP_ENCRYPTION:+--encryption "$BACKUP_ENCRYPTION"} "$place" "$cluster" "${2:?name the file}"
    ;;
  fetch-wal)
    cluster=$(own_cluster)
    barman wal-restore "$place" "$cluster" "${2:?name the file}" "${3:?name its place}"
    ;;
  base) make_base ;;
  schedule) schedule ;;
  list)
    cluster=$(stored_cluster)
    barman backup-list "$place" "$cluster"
    ;;
  check) check ;;
  restore) restore "${2:?name the folder}" "${3:-}" ;;
  scratch) scratch "${2:?name the folder}" "${3:-}" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" && exit 64 ;;
esac
