#!/bin/sh
# manage.py of a machine without Docker, as the service's user and with its settings and secrets:
#   /srv/yral-ai-chat/production/current/deploy/manage.sh doctor
# It takes them from the units (deploy/systemd), so that there is one place for them.
set -eu
release=$(cd "$(dirname "$0")/.." && pwd -P)
instance=$(basename "$(dirname "$(dirname "$release")")")
common=$release/deploy/systemd/yral-ai-chat-.service.d/common.conf
set -- "$release/deploy/run.sh" .venv/bin/python manage.py "$@"
# shellcheck disable=SC2013  # a line may hold several, and no value has a blank
for line in $(sed -n 's/^Environment=//p' "$common"); do
  set -- "--setenv=$line" "$@"
done
# shellcheck disable=SC2013
for line in $(sed -n -E '/^(User|Group|UMask|StateDirectory|StateDirectoryMode|LoadCredential)=/p' "$common"); do
  set -- "--property=$line" "$@"
done
# The instance, wherever the units say %i.
count=$#
while [ "$count" -gt 0 ]; do
  word=$1
  shift
  case $word in --setenv=*%i* | --property=*%i*) word=$(printf %s "$word" | sed "s/%i/$instance/g") ;; esac
  set -- "$@" "$word"
  count=$((count - 1))
done
if [ -t 0 ]; then with=--pty; else with=--pipe; fi
exec systemd-run --quiet --wait --collect "$with" "$@"
