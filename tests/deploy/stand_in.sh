#!/bin/sh
# docker, systemctl, journalctl, sudo and curl of a machine that has none: each call is written down, and fails if it
# holds one of the texts in the file `fails`. Which release runs is remembered; those in `unhealthy` aren't well.
program=${0##*/}
[ "$program" != sudo ] || { shift; exec "$@"; }
call="$program $*"
echo "$call" >>"$STAND_INS/calls"
echo "output of $program" >&2
while read -r text; do
  case $call in *"$text"*) exit 1 ;; esac
done <"$STAND_INS/fails"
running=$(cat "$STAND_INS/running" 2>/dev/null)
image=$(cat "$STAND_INS/image")
now_runs() { echo "$1" >"$STAND_INS/running"; }
case $call in
  curl*)
    [ -n "$running" ] || exit 7
    case " $(cat "$STAND_INS/unhealthy") " in *" $running "*) exit 22 ;; esac
    case $call in */health) echo '{"status":"healthy"}' ;; *) echo "{\"version\":\"$running\",\"status\":\"running\"}" ;; esac
    ;;
  *" config --images "*) echo yral-ai-chat:latest ;;
  *" build "*) echo "$call" | sed -E 's,.*releases/([^/]+)/deploy.*,\1,' >"$STAND_INS/image" ;;
  *" ps "*) [ -z "$running" ] || echo 0123456789ab ;;
  *" stop "*) rm -f "$STAND_INS/running" ;;
  *" up "*) now_runs "$image" ;;
  *" inspect "*) echo "sha256:$running" ;;
  "docker tag sha256:"*" yral-ai-chat:latest") echo "$3" >/dev/null; echo "${2#sha256:}" >"$STAND_INS/image" ;;
  *is-active*) [ -n "$running" ] || exit 3 ;;
  "systemctl start yral-ai-chat@"*) now_runs "$(basename "$(readlink "$DEPLOY_ROOT/current")")" ;;
esac
exit 0
