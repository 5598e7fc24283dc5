#!/bin/sh
# Writes what nginx reads into the folder FOLDER, as the nginx image does at its start: render.sh FOLDER
# FOLDER/conf.d/yral_chat.conf, and FOLDER/yral_chat/ with what it includes. The variables stand in README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder="${1:?Say where to: render.sh /etc/nginx}"
set -- # the sourced file sees no arguments
# shellcheck source=deploy/nginx/15-yral-chat.envsh
. "$here/15-yral-chat.envsh"
command -v envsubst >/dev/null || yral_stop "envsubst is missing. Install the package gettext-base."

mkdir -p "$folder/conf.d" "$folder/yral_chat"
cp "$here"/yral_chat/*.inc "$folder/yral_chat/"
# Only what is set, as in the image: nginx has variables of its own.
# shellcheck disable=SC2016
names=$(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/${\1}/p' | tr '\n' ' ')
envsubst "$names" <"$here/templates/yral_chat.conf.template" >"$folder/conf.d/yral_chat.conf.new"
mv "$folder/conf.d/yral_chat.conf.new" "$folder/conf.d/yral_chat.conf"
