#!/bin/sh
# nginx with a certificate in front of the service, on a Debian or Ubuntu machine without Docker. May be run again at any time.
# deploy/nginx/README.md says what it sets up; variables of its table are passed on.
set -eu

usage() {
    cat <<'USAGE'
Usage: setup_nginx.sh --domain NAME --email ADDRESS [options]
  --domain NAME      the host name of the service; it must point to this machine
  --email ADDRESS    where Let's Encrypt writes to when a certificate is about to end
  --staff NETWORKS   who may see the admin, /metrics and /status: addresses or networks, with commas
  --uploads FOLDER   the service's MEDIA_UPLOAD_DIR (default: uploads in the repository's folder)
  --staging-uploads FOLDER   staging's (default: as above)
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
acme=/var/www/acme

render() { # by which certificate: the folder of it
    export SERVER_NAME="$domain" STAFF_NETWORKS="$staff" ACME_FOLDER="$root$acme"
    export MEDIA_FOLDER="$uploads" STAGING_MEDIA_FOLDER="${staging_uploads:-$uploads}"
    export PLACEHOLDER_FOLDER="$root$placeholder" TLS_CERTIFICATE="$root$1/fullchain.pem" TLS_KEY="$root$1/privkey.pem"
    "$here/nginx/render.sh" "$2"
}

# What is there is put back if nginx doesn't like the new one.
configure() {
    if [ -n "$dry_run" ]; then
        preview=$(mktemp -d)
        PREVIEWED="$preview" render_preview
        if cmp -s "$preview/conf.d/yral_chat.conf" "$root/etc/nginx/conf.d/yral_chat.conf"; then
            echo "would leave $root/etc/nginx/conf.d/yral_chat.conf as it is"
        else
            echo "would write: $root/etc/nginx/conf.d/yral_chat.conf"
        fi
        rm -rf "$preview"
        return 0
    fi
    kept=$(mktemp -d)
    [ ! -d "$root/etc/nginx/conf.d" ] || cp -a "$root/etc/nginx/conf.d" "$kept/conf.d"
    render "$1" "$root/etc/nginx"
    if ! nginx -t -q -c "$root/etc/nginx/nginx.conf"; then
        rm -f "$root/etc/nginx/conf.d/yral_chat.conf"
        [ ! -f "$kept/conf.d/yral_chat.conf" ] || cp -a "$kept/conf.d/yral_chat.conf" "$root/etc/nginx/conf.d/"
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
    run certbot "$@"
}

install_packages
# Debian's welcome page stands where the service belongs.
[ ! -e "$root/etc/nginx/sites-enabled/default" ] || run rm -f "$root/etc/nginx/sites-enabled/default"
run mkdir -p "$root$acme"
# Files of users are for their owner and its group: nginx sends them.
if [ -d "$uploads" ] && getent passwd www-data >/dev/null; then
    group=$(stat -c %G "$uploads")
    if ! id -nG www-data | tr ' ' '\n' | grep -qx "$group"; then
        if [ "$group" = root ]; then
            echo "Beware: $uploads belongs to the group root, and nginx (www-data) won't be able to read the files in it."
        else
            run usermod -aG "$group" www-data
        fi
    fi
fi
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
