#!/bin/sh
# What timers do on a machine without Docker, for one with: compose.yaml starts it as `jobs` and `jobs-staging`.
# Hourly the export for dashboards, daily (UTC) the purge at 3 and the restore drill at 4, the latter with ENABLE_LITESTREAM.
# When each was last done is kept beside the database: a restart repeats none, and what was slept through is made up for.
# Once the export is there, Metabase is told to read it, if METABASE_API_KEY is set.
set -u
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python}
done_at=${JOBS_FOLDER:-data/jobs}
mkdir -p "$done_at" || exit 1
child=''
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; wait; exit 0' TERM INT

run() { # in the background, so that a stop is heard meanwhile
  "$@" &
  child=$!
  wait "$child" || echo "jobs: failed: $*" >&2
  child=''
}
due() { # a job, and the period that it is done once in
  [ "$(cat "$done_at/$1" 2>/dev/null)" != "$2" ] && echo "$2" >"$done_at/$1"
}

while true; do
  hour=$(date -u +%H) day=$(date -u +%F)
  if due export "$day $hour"; then
    run "$python" manage.py export_analytics
    [ -z "${METABASE_API_KEY:-}" ] || run "$python" deploy/metabase/dashboard.py --reconnect
  fi
  if [ "$hour" -ge 3 ] && due purge "$day"; then
    run "$python" manage.py purge_media --delete
    run "$python" manage.py clearsessions
  fi
  case ${ENABLE_LITESTREAM:-} in
    [Tt]rue | [Yy]es | [Oo]n | 1) [ "$hour" -lt 4 ] || ! due drill "$day" || run "$python" manage.py restore_drill ;;
  esac
  run sleep "${JOBS_PAUSE:-60}"
done
