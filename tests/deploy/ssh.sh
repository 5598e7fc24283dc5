#!/bin/sh
# ssh of a machine whose server is this one: writes down how it is called, and does what it is told.
printf '%s\n' "ssh $*" >>"$STAND_INS/ssh"
cp "$2" "$STAND_INS/key" && stat -c %a "$2" >>"$STAND_INS/modes"
for last; do :; done
env -i PATH="$PATH" STAND_INS="$STAND_INS" DEPLOY_ROOT="$DEPLOY_ROOT" PATIENCE=2 PAUSE=0.02 sh -c "$last"
