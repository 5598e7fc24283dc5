#!/usr/bin/env bash
# Makes the release that this script belongs to the one that runs, and goes back to the one before if it isn't well.
#
#   ROOT/releases/NAME/deploy/deploy.sh compose | systemd
#
# ROOT is the folder of one instance and named for it, production or staging. In it are
#   releases/NAME/     each release's code; NAME is free, such as 1.2.3+4f5e6d7
#   current, previous  symbolic links to the release that runs, and to the one that ran before
#   settings.env       the settings of the instance
#   data/, uploads/, logs/   with Docker Compose; with systemd it's /var/lib/yral-ai-chat/…
#
# The order: build, migrate (while the version before still answers; migrations only add), stop, start, verify. What goes
# wrong before the stop changes nothing. What goes wrong after it is taken back: the version before starts again, with
# the data as they are. It can be run again at any time; two at once are refused.
#
# Ends with 0: the release runs and is well. 1: it doesn't; the version before does, or nothing was changed.
# 2: nothing that is well runs: look at it now. 3: it runs and is well, but what belongs to it doesn't start: the jobs, nginx.
# 64: called wrongly. 75: another deployment is under way.
#
# New settings come with a release as ROOT/settings.env.new: they are taken with it, and taken back with it.
# It asks at 127.0.0.1 and PORT: with systemd that of the settings (8000), with Docker 8000 and for staging 8001.
# HEALTH_HOST (localhost) must be in ALLOWED_HOSTS, PATIENCE (120) is how many seconds it may take to become well, KEEP
# (5) how many releases stay. The log is ROOT/deploy.log.
# shellcheck disable=SC2329  # compose_… and systemd_… are called as "${with}_…"
set -uo pipefail

release=$(cd "$(dirname "$0")/.." && pwd -P)
name=$(basename "$release")
root=$(dirname "$(dirname "$release")")
instance=$(basename "$root")
with=${1:-}
log=$root/deploy.log

# Who started it may go away, and the terminal with them: it still comes to an end.
trap '' HUP PIPE
exec 3>&1 # what is said, also where the output is redirected

say() {
  printf '%s %s\n' "$(date -u +%FT%TZ)" "$1" >>"$log"
  printf '%s\n' "$1" 2>/dev/null >&3 || true
}
finish() { say "$2"; exit "$1"; }
quietly() { ("$@") >>"$log" 2>&1 3>&- 9>&-; }
show_log() { tail -n "${1:-15}" "$log" 2>/dev/null | sed 's/^/  | /' 2>/dev/null >&3 || true; }
usage() { echo "$1 Usage: ROOT/releases/NAME/deploy/deploy.sh compose|systemd, where ROOT ends in production or staging." >&2; exit 64; }

case $with in compose | systemd) ;; *) usage "Say how the service runs here." ;; esac
[ "$(basename "$(dirname "$release")")" = releases ] || usage "$release isn't in a folder releases/."
case $instance in
  production) service=yral-ai-chat jobs=jobs port=8000 ;;
  staging) service=yral-ai-chat-staging jobs=jobs-staging port=8001 ;;
  *) usage "$root is neither production nor staging." ;;
esac

# --- How each way builds, migrates, stops, starts, and knows what ran before -------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --non-interactive "$@"; fi; }

compose() { # of the release whose folder is named
  local folder=$1 settings=() files=(--file "$1/deploy/compose.yaml")
  shift
  [ -f "$root/settings.env" ] && settings=(--env-file "$root/settings.env")
  [ "$1" != run ] || files+=(--file "$folder/deploy/compose.once.yaml")
  STAGING_DATA=$(dirname "$root")/staging/data docker compose --project-name yral-ai-chat "${settings[@]}" "${files[@]}" "$@"
}

image() { compose "$release" config --images "$service" | grep --extended-regexp --max-count 1 "^$service(:|$)"; }

# The data stay where they are; each release finds them, and the settings, under the names that compose.yaml has for them.
compose_link_state() {
  local one
  for one in data uploads logs; do
    mkdir -p "$root/$one"
    [ -e "$release/$one" ] || ln -s "$root/$one" "$release/$one" || return
  done
  ln -sfn "$root/settings.env" "$release/.env" && ln -sfn "$(dirname "$root")/staging/settings.env" "$release/.env.staging"
}
compose_before() {
  local container
  container=$(compose "$release" ps --quiet "$service" 2>>"$log" | head -n 1)
  [ -z "$container" ] || docker inspect --format '{{.Image}}' "$container" 2>>"$log"
}
compose_runs() { [ -n "$(compose "$release" ps --quiet --status running "$service" 2>>"$log")" ]; }
compose_build() {
  compose_link_state || return
  # The image of what runs keeps a name, so that no prune takes it.
  [ -z "$before_image" ] || quietly docker tag "$before_image" "yral-ai-chat-$instance:before" || return
  quietly compose "$release" build "$service" || return
  # The folders are the service's before anything of it runs in them.
  quietly compose "$release" run --rm -T folders || return
  # Also with files that are as before: its settings may have changed.
  ! compose_has_nginx || quietly compose "$release" run --rm --no-deps -T nginx-once nginx -t
}
# Production's release looks after nginx, where it runs: it has one configuration for both.
compose_has_nginx() { [ "$instance" = production ] && [ -n "$(compose "$release" ps --quiet --status running nginx 2>>"$log")" ]; }
changed() { [ -n "$before" ] && ! diff -rq "$before/deploy/$1" "$release/deploy/$1" >>"$log" 2>&1; }
# Beside the service: the jobs by this release's code. nginx is known by the link, which stays when releases go: it is
# made anew only when its settings or its files have changed.
compose_beside() {
  local up=(up --detach --no-build --no-deps) again=()
  # Not --wait: Compose takes it for a fault that the jobs have no health check.
  quietly compose "$release" "${up[@]}" --force-recreate "$jobs" || amiss+=("$jobs")
  compose_has_nginx || return 0
  ! changed nginx || again=(--force-recreate)
  quietly compose "$root/current" "${up[@]}" --wait --wait-timeout "${PATIENCE:-120}" "${again[@]}" nginx || amiss+=(nginx)
}
compose_migrate() { quietly compose "$release" run --rm --no-deps -T "$service-once" migrate --noinput; }
compose_stop() { quietly compose "$release" stop "$service"; }
compose_start() { quietly compose "$release" up --detach --no-build --force-recreate "$service"; }
compose_start_before() {
  quietly docker tag "$before_image" "$(image)" && quietly compose "${before:-$release}" up --detach --no-build --force-recreate "$service"
}
compose_evidence() { quietly compose "$release" logs --tail 30 "$service"; }

unit="yral-ai-chat@$instance"
systemd_port() { sed -nE "s/^PORT=['\"]?([0-9]+)['\"]?$/\1/p" "$root/settings.env" 2>/dev/null | tail -n 1; }
systemd_before() { :; }
systemd_runs() { quietly as_root systemctl is-active --quiet "$unit"; }
systemd_build() (
  cd "$release" || exit
  uv=$(command -v uv) || { quietly make .tools/bin/uv && uv=$release/.tools/bin/uv; } || exit
  # Python itself must be where the unit can read it, which isn't a home.
  export UV_PYTHON_INSTALL_DIR=${UV_PYTHON_INSTALL_DIR:-$root/python} UV_PYTHON_PREFERENCE=${UV_PYTHON_PREFERENCE:-system}
  export UV_PROJECT_ENVIRONMENT=$release/.venv UV_COMPILE_BYTECODE=${UV_COMPILE_BYTECODE:-1}
  quietly "$uv" sync --frozen --no-dev --extra litestream || exit
  # As for an image: without the settings, and without a secret that would stay in the folder.
  quietly env -i PATH="$PATH" ENV_FILE= ENVIRONMENT=development LOG_FILE= .venv/bin/python manage.py collectstatic --noinput
)
systemd_migrate() {
  ln -sfn "releases/$name" "$root/next" && quietly as_root systemctl start "yral-ai-chat-migrate@$instance"
}
systemd_stop() { quietly as_root systemctl stop "$unit"; }
systemd_start() { quietly as_root systemctl start "$unit"; }
systemd_start_before() { systemd_start; }
systemd_beside() { # what is root's
  ! changed systemd || say "deploy/systemd has changed: as root copy it to /etc/systemd/system and run systemctl daemon-reload, as you did at first."
  [ "$instance" != production ] || ! changed nginx || say "deploy/nginx has changed: run setup_nginx.sh of this release as root, as you did at first."
}
systemd_evidence() { quietly as_root journalctl --no-pager --lines 30 --unit "$unit" || true; }

compose_port() { echo "$port"; }

# --- What both have in common ------------------------------------------------------------------------------------------

ask() { curl --silent --show-error --fail --max-time 5 --header "Host: ${HEALTH_HOST:-localhost}" "http://127.0.0.1:$port$1" 2>>"$log"; }

# Three healthy answers in a row; one alone may come from a process that dies the next moment.
is_well() {
  local well=0 until=$((SECONDS + ${PATIENCE:-120})) at
  at=$("${with}_port")
  port=${at:-8000}
  while [ "$SECONDS" -lt "$until" ]; do
    if ask /health >/dev/null; then well=$((well + 1)); else well=0; fi
    [ "$well" -lt 3 ] || return 0
    sleep "${PAUSE:-1}"
  done
  return 1
}

take_settings() {
  [ -f "$root/settings.env.new" ] || return 0
  [ ! -f "$root/settings.env" ] || mv "$root/settings.env" "$root/settings.env.before" || return
  mv "$root/settings.env.new" "$root/settings.env"
}
take_settings_back() { [ ! -f "$root/settings.env.before" ] || mv "$root/settings.env.before" "$root/settings.env"; }
not_deployed() { take_settings_back; show_log; finish 1 "NOT DEPLOYED: $1. The log is $log"; }

version() { ask / | sed -n 's/.*"version": *"\([^"]*\)".*/\1/p'; }

point() { # a link, at a release's folder; at no moment is there none
  ln -sfn "releases/$(basename "$2")" "$root/.$1" && mv --no-target-directory "$root/.$1" "$root/$1"
}

switched=
take_back() { # why
  trap '' INT TERM
  say "$1"
  "${with}_evidence"
  show_log 30
  if [ -z "$before" ] && [ -z "$before_image" ]; then
    "${with}_stop"
    finish 2 "FAILED: $name isn't well, and nothing ran here before it. The log is $log"
  fi
  take_settings_back
  say "Going back to ${before:+$(basename "$before")}${before_image:+ (image ${before_image:0:19})} …"
  "${with}_stop"
  [ -z "$before" ] || point current "$before"
  if "${with}_start_before" && is_well; then
    finish 1 "ROLLED BACK: $name isn't well; $(version) runs again. The log is $log"
  fi
  finish 2 "FAILED: $name isn't well, and going back didn't help either: nothing that is well runs. The log is $log"
}
interrupted() {
  if [ -n "$switched" ]; then take_back "Interrupted."; fi
  not_deployed "interrupted before anything was changed"
}

remove_old_releases() {
  local one kept=0
  find "$root/releases" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %f\n' | sort --reverse --numeric-sort | while read -r _ one; do
    kept=$((kept + 1))
    case $one in "$name" | "$(basename "$(readlink "$root/previous" || true)")") continue ;; esac
    [ "$kept" -le "${KEEP:-5}" ] || rm -rf "${root:?}/releases/$one"
  done
}

exec 9>"$root/.deploy.lock" || exit 1
flock --nonblock 9 || { echo "Another deployment of $instance is under way." >&2; exit 75; }
trap interrupted INT TERM
rm -f "$root/settings.env.before" # of one that was killed

folder_of() { [ ! -e "$root/$1" ] || (cd "$root/$1" && pwd -P); }
before=$(folder_of current)
before_image=$("${with}_before")
# The same release once more: systemd has only this one folder of it, Docker has the image that it was.
[ "$with/$before" != "systemd/$release" ] || before=$(folder_of previous)

say "Building $name …"
take_settings || not_deployed "the new settings can't be put in their place"
"${with}_build" || not_deployed "$name can't be built; nothing was changed"

if "${with}_runs"; then
  say "Migrating while ${before:+$(basename "$before")} answers …"
  "${with}_migrate" || not_deployed "$name can't migrate the database or read its settings; what ran goes on"
fi

say "Stopping what runs, and starting $name …"
switched=yes
"${with}_stop" || take_back "What runs can't be stopped."
point current "$release" || take_back "ROOT/current can't be changed."
"${with}_start" || take_back "$name doesn't start."
is_well || take_back "$name doesn't become well in ${PATIENCE:-120} s."
switched=
rm -f "$root/settings.env.before"
amiss=() # what doesn't start beside it
"${with}_beside"
[ -z "$before" ] || [ "$before" = "$release" ] || point previous "$before"
remove_old_releases
if [ ${#amiss[@]} -gt 0 ]; then
  show_log
  finish 3 "DEPLOYED, BUT: $(version) runs and is well; this doesn't start: ${amiss[*]}. The log is $log"
fi
finish 0 "DEPLOYED: $(version) runs and is well."
