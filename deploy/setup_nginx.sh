#!/bin/sh
# nginx with a certificate in front of the service, on a Debian or Ubuntu machine without Docker. May be run again at any time.
# deploy/nginx/README.md says what it sets up; variables of its table are passed on. In a release that deploy.sh runs by
# systemd it knows where the files are, and takes what nginx must know of the service from its settings.env.
set -eu

usage() {
    cat <<'USAGE'
Usage: setup_nginx.sh --domain NAME --email ADDRESS [options]
  --domain NAME      the host name of the service; it must point to this machine
  --email ADDRESS    where Let's Encrypt writes to when a certificate is about to end
  --staff NETWORKS   who may see the admin, /metrics and /status: addresses or networks, with commas
  --uploads FOLDER   the service's MEDIA_UPLOAD_DIR (default: that of the units of deploy/systemd in a release of deploy.sh,
                     else uploads in the repository's folder)
  --staging-uploads FOLDER   staging's (default: likewise, else as above)
  --staging-ca       a certificate for practice, which browsers don't believe
  --dry-run          say what would be done, and do nothing
USAGE
}

stop() {
    echo "setup_nginx.sh: $1" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
root="${SETUP_ROOT:-}" # before every path that is written; only tests set it
domain="" email="" staff="${STAFF_NETWORKS:-}" uploads="$(dirname "$here")/uploads" staging_uploads="" staging_ca="" dry_run=""
release=$(cd "$here/.." && pwd -P)
settings=""
if [ "$(basename "$(dirname "$release")")" = releases ]; then
    settings="$(dirname "$(dirname "$release")")/settings.env"
    uploads="$root/var/lib/yral-ai-chat/production/uploads" staging_uploads="$root/var/lib/yral-ai-chat/staging/uploads"
fi
while [ $# -gt 0 ]; do
    case "$1" in
        --staging-ca | --dry-run | --help) ;;
        *) [ $# -gt 1 ] || stop "$1 needs a value. Try --help" ;;
    esac
    case "$1" in
        --domain) domain="$2"; shift ;;
        --email) email="$2"; shift ;;
        --staff) staff="$2"; shift ;;
        --uploads) uploads="$2"; shift ;;
        --staging-uploads) staging_uploads="$2"; shift ;;
        --staging-ca) staging_ca=yes ;;
        --dry-run) dry_run=yes ;;
        --help) usage; exit 0 ;;
        *) stop "$1 is no option. Try --help" ;;
    esac
    shift
done
echo "$domain" | grep -Eqx '([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}' || stop "--domain must be a host name such as chat.example.com."
echo "$email" | grep -Eqx '[^@[:space:]]+@[^@[:space:]]+\.[^@[:space:]]+' || stop "--email must be an address such as ops@example.com."
[ -n "$dry_run" ] || [ -n "$root" ] || [ "$(id -u)" = 0 ] || stop "must be run by root: sudo $0 …"

run() {
    if [ -n "$dry_run" ]; then echo "would run: $*"; else echo "$*"; "$@"; fi
}

# What the service and nginx must have alike: an admin whose path nginx doesn't know would be open to everybody.
as_the_service() {
    [ -f "$settings" ] || return 0
    for name in STAFF_NETWORKS ADMIN_PATH CORS_ORIGINS HSTS_SECONDS MAX_IMAGE_SIZE_MB MAX_AUDIO_SIZE_MB; do
        eval "given=\${$name:-}"
        # shellcheck disable=SC2154  # eval sets it
        [ -z "$given" ] || continue
        line="^[[:space:]]*${name}[[:space:]]*=[[:space:]]*['\"]?([^'\"#]*).*"
        value=$(sed -n -E "s/$line/\1/; t found; d; :found; s/[[:space:]]*$//p" "$settings" | tail -n 1)
        [ -z "$value" ] || export "$name=$value"
    done
}

install_packages() {
    missing=""
    command -v nginx >/dev/null || missing="$missing nginx"
    command -v certbot >/dev/null || missing="$missing certbot"
    command -v envsubst >/dev/null || missing="$missing gettext-base"
    command -v openssl >/dev/null || missing="$missing openssl"
    [ -n "$missing" ] || return 0
    run apt-get update -qq
    # shellcheck disable=SC2086  # several words
    run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
}

issued="/etc/letsencrypt/live/$domain"
placeholder="/etc/nginx/yral_chat/tls"
welcome="$root/etc/nginx/sites-enabled/default" # Debian's page stands where the service belongs
acme=/var/www/acme

render() { # by which certificate: the folder of it
    export SERVER_NAME="$domain" STAFF_NETWORKS="${staff:-${STAFF_NETWORKS:-}}" ACME_FOLDER="$root$acme"
    export MEDIA_FOLDER="$uploads" STAGING_MEDIA_FOLDER="${staging_uploads:-$uploads}"
    export PLACEHOLDER_FOLDER="$root$placeholder" TLS_CERTIFICATE="$root$1/fullchain.pem" TLS_KEY="$root$1/privkey.pem"
    "$here/nginx/render.sh" "$2"
}

# What is there is put back if nginx doesn't like the new one.
configure() {
    if [ -n "$dry_run" ]; then
        preview=$(mktemp -d)
        new=conf.d/yral_chat.conf # where envsubst is still to be installed it can't be compared
        if command -v envsubst >/dev/null; then
            PREVIEWED="$preview" render_preview
            new=$(cd "$preview" && find . -type f | while read -r file; do cmp -s "$file" "$root/etc/nginx/$file" || echo "${file#./}"; done)
        fi
        [ -n "$new" ] || echo "would leave the configuration in $root/etc/nginx as it is"
        for file in $new; do echo "would write: $root/etc/nginx/$file"; done
        [ ! -e "$welcome" ] || echo "would remove: $welcome"
        rm -rf "$preview"
        return 0
    fi
    kept=$(mktemp -d)
    for folder in conf.d yral_chat; do
        [ ! -d "$root/etc/nginx/$folder" ] || cp -a "$root/etc/nginx/$folder" "$kept/"
    done
    render "$1" "$root/etc/nginx"
    [ ! -e "$welcome" ] || mv "$welcome" "$kept/welcome"
    if ! nginx -t -q -c "$root/etc/nginx/nginx.conf"; then
        rm -f "$root/etc/nginx/conf.d/yral_chat.conf"
        [ ! -f "$kept/conf.d/yral_chat.conf" ] || cp -a "$kept/conf.d/yral_chat.conf" "$root/etc/nginx/conf.d/"
        [ ! -d "$kept/yral_chat" ] || cp -a "$kept/yral_chat/." "$root/etc/nginx/yral_chat/"
        [ ! -L "$kept/welcome" ] && [ ! -e "$kept/welcome" ] || mv "$kept/welcome" "$welcome"
        rm -rf "$kept"
        stop "nginx refuses the new configuration (above). The one of before is back; nothing was reloaded."
    fi
    rm -rf "$kept"
}

render_preview() { # in a subshell's folder, with nothing made beside it
    (
        render "$issued" "$PREVIEWED"
    ) >/dev/null
}

reload() {
    run systemctl enable --quiet nginx
    run systemctl reload-or-restart nginx
}

certify() {
    set -- certonly --webroot --webroot-path "$root$acme" --domain "$domain" --email "$email"
    set -- "$@" --agree-tos --non-interactive --keep-until-expiring --deploy-hook "systemctl reload nginx"
    [ -z "$staging_ca" ] || set -- "$@" --test-cert
    # One for practice would be kept for two months.
    [ -n "$staging_ca" ] || ! grep -qs acme-staging "$root/etc/letsencrypt/renewal/$domain.conf" || set -- "$@" --force-renewal
    run certbot "$@"
}

# Files of users are for their owner and its group: nginx sends them.
let_nginx_read() {
    of=$1
    [ -d "$of" ] || of=$(dirname "$of") # it's made by the first upload
    if [ ! -d "$of" ]; then
        echo "Beware: $1 isn't there yet. Run this again once the service has started, or nginx can't read the files in it."
        return 0
    fi
    group=$(stat -c %G "$of")
    if id -nG www-data | tr ' ' '\n' | grep -qx "$group"; then
        return 0
    elif [ "$group" = root ]; then
        echo "Beware: $of belongs to the group root, and nginx (www-data) won't be able to read the files in it."
    else
        run usermod -aG "$group" www-data
    fi
}

as_the_service
install_packages
run mkdir -p "$root$acme"
getent passwd www-data >/dev/null && for folder in "$uploads" ${staging_uploads:+"$staging_uploads"}; do
    let_nginx_read "$folder"
done
if [ -s "$root$issued/fullchain.pem" ]; then
    configure "$issued"
    reload
    certify
else
    # A certificate is proved over http, for which nginx must run: first with one of its own.
    configure "$placeholder"
    reload
    certify
    configure "$issued"
    reload
fi
if [ -n "$dry_run" ]; then echo "Nothing was done."; else echo "https://$domain/ is served."; fi
