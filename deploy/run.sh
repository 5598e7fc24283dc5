#!/bin/sh
# Runs a command of this release with systemd's credentials: each file of the unit's `LoadCredential=secret:FOLDER` becomes
# NAME_FILE, which the settings read. Secrets so stand in no environment and no command line.
set -eu
for file in "${CREDENTIALS_DIRECTORY:-/nowhere}"/secret_*; do
  [ -f "$file" ] || continue
  name=${file##*/secret_}
  export "${name}_FILE=$file"
done
cd "$(dirname "$0")/.."
exec "$@"
