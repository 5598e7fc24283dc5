#!/usr/bin/env bash
# Brings the commit that is checked out here to a server by SSH, with its settings, and deploys it there:
#
#   deploy/deliver.sh production | staging
#
# The workflow `deploy` runs it; so can you, from a clone. It reads from the environment
#   DEPLOY             compose or systemd: how the service runs there
#   SSH_HOST, SSH_USER, SSH_PRIVATE_KEY    of the server
#   SSH_KNOWN_HOSTS    its key, as `ssh-keyscan` prints it: no other server gets the secrets
#   VARIABLES          JSON: the settings that are no secrets, and SSH_PORT, DEPLOY_ROOT (/srv/yral-ai-chat), PUBLIC_URL
#   JWT_SECRET_KEY …   any setting of .env.example; without any, the server's settings.env stays as it is
#
# Secrets travel through standard input: they are in no command line, and in no file of this machine that stays.
# It ends as deploy.sh does there: 0 is well, 1 taken back, 2 nothing that is well runs, 3 something beside it doesn't
# start, 75 another deployment is under way.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "NOT DEPLOYED: $1" >&2; exit 64; }

instance=${1:-}
case $instance in production | staging) ;; *) stop "say which: deploy/deliver.sh production|staging" ;; esac
case ${DEPLOY:-} in compose | systemd) ;; *) stop "DEPLOY must be compose or systemd." ;; esac
for needed in SSH_HOST SSH_USER SSH_PRIVATE_KEY SSH_KNOWN_HOSTS; do
  [ -n "${!needed:-}" ] || stop "$needed isn't set, as a secret of the environment $instance."
done
variable() { python3 -c 'import json, os, sys; print(json.loads(os.environ.get("VARIABLES") or "{}").get(*sys.argv[1:]))' "$1" "$2"; }
port=$(variable SSH_PORT 22)
root=$(variable DEPLOY_ROOT /srv/yral-ai-chat)/$instance
public=$(variable PUBLIC_URL '')
[[ $root =~ ^/[A-Za-z0-9._/-]+$ ]] || stop "DEPLOY_ROOT must be a path of letters, digits, dots and dashes."
[[ $port =~ ^[0-9]+$ ]] || stop "SSH_PORT must be a number."
commit=$(git rev-parse HEAD)
name=$(python3 -c 'import yral_chat; print(yral_chat.__version__)')+${commit:0:12}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 077
printf '%s\n' "$SSH_PRIVATE_KEY" >"$folder/key"
printf '%s\n' "$SSH_KNOWN_HOSTS" >"$folder/known_hosts"
python3 deploy/settings_file.py >"$folder/settings.env"
if [ "$DEPLOY" = compose ] && [ -s "$folder/settings.env" ] && ! grep -q '^SERVER_NAME=' "$folder/settings.env"; then
  stop "SERVER_NAME isn't among the settings, which replace those of the server: nginx would answer to localhost alone."
fi

remote() { # with what comes on standard input
  ssh -i "$folder/key" -p "$port" -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
    -o UserKnownHostsFile="$folder/known_hosts" -o ConnectTimeout=15 -o ServerAliveInterval=15 -- "$SSH_USER@$SSH_HOST" "$1"
}

echo "Bringing $name to $instance …"
# Unpacked beside and then renamed: what is in releases/ is whole. Once more the same commit is the same folder.
git archive --format=tar --add-virtual-file="COMMIT:$commit" HEAD | remote "set -e; umask 022; cd $root; mkdir -p releases
  rm -rf .incoming; mkdir .incoming; tar -x -C .incoming
  if [ -e releases/$name ]; then rm -rf .incoming; else mv .incoming releases/$name; fi"
if [ -s "$folder/settings.env" ]; then
  # Who serves may read it, if there is such a group; deploy.sh takes it, and takes it back if it has to.
  remote "set -e; umask 077; cd $root; cat >settings.env.new
    if getent group yral-ai-chat >/dev/null; then chgrp yral-ai-chat settings.env.new && chmod 0640 settings.env.new; fi" <"$folder/settings.env"
fi
code=0
remote "$root/releases/$name/deploy/deploy.sh $DEPLOY" </dev/null || code=$?
# Nobody took the settings: they mustn't wait there for whatever is deployed next.
[ "$code" != 75 ] || remote "rm -f $root/settings.env.new" </dev/null
[ "$code" = 0 ] || { echo "The deployment to $instance ended with $code." >&2; exit "$code"; }

if [ -n "$public" ]; then
  curl --silent --show-error --fail --retry 5 --retry-all-errors --retry-delay 2 --max-time 10 --output "$folder/health" "$public/health" || {
    echo "$name runs on $instance, but $public/health isn't well. Look at nginx, the name and the certificate." >&2
    exit 1
  }
fi
echo "$instance is at $name."
