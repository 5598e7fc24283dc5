#!/bin/bash
# systemd-run of a machine without systemd: the command with what its options give it, and nothing else.
env=(PATH=/usr/local/bin:/usr/bin:/bin)
credentials=$(mktemp -d)
while case ${1:-} in --*) true ;; *) false ;; esac do
  case $1 in
    --setenv=*) env+=("${1#--setenv=}") ;;
    --property=LoadCredential=*)
      given=${1#--property=LoadCredential=}
      for file in "${given#*:}"/*; do cp "$file" "$credentials/${given%%:*}_$(basename "$file")"; done
      ;;
  esac
  shift
done
env -i "${env[@]}" CREDENTIALS_DIRECTORY="$credentials" "$@"
code=$?
rm -r "$credentials"
exit "$code"
