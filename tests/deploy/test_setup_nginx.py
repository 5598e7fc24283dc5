"""deploy/setup_nginx.sh below another root: it would change this machine's nginx. A real nginx looks at what it writes;
certbot, systemctl and others are stand-ins that note how they were called."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.conftest import wait_until
from tests.nginx import needs_nginx
from tests.servers import free_port

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

ROOT: Path = configured.BASE_DIR
NAME = "chat.example.com"
NEEDED = ("--domain", NAME, "--email", "ops@example.com")
SCRIPTS = ("deploy/*.sh", "deploy/nginx/*.sh", "deploy/nginx/*.envsh")
CERTBOT = """
live="$SETUP_ROOT/etc/letsencrypt/live/chat.example.com"
grep -q "ssl_certificate " "$SETUP_ROOT/etc/nginx/conf.d/yral_chat.conf" || exit 1
[ -z "$CERTBOT_FAILS" ] || exit 1
mkdir -p "$live" "$SETUP_ROOT/etc/letsencrypt/renewal"
case "$*" in *--test-cert*) ca=acme-staging-v02 ;; *) ca=acme-v02 ;; esac
echo "server = https://$ca.api.letsencrypt.org/directory" >"$SETUP_ROOT/etc/letsencrypt/renewal/chat.example.com.conf"
cp "$SETUP_ROOT"/etc/nginx/yral_chat/tls/* "$live/"
"""


@dataclass
class Machine:
    root: Path
    repository: Path = ROOT

    def release(self) -> Path:
        """From now on the script is that of a release of deploy.sh; the folder of its instance."""
        self.repository = self.root / "srv/yral-ai-chat/production/releases/1.0.0"
        for folder in ("deploy/nginx/templates", "deploy/nginx/yral_chat"):
            shutil.copytree(ROOT / folder, self.repository / folder)
        for file in ("deploy/setup_nginx.sh", "deploy/nginx/render.sh", "deploy/nginx/15-yral-chat.envsh"):
            shutil.copy(ROOT / file, self.repository / file)
        current = self.repository.parents[1] / "current"
        current.symlink_to("releases/1.0.0")
        self.repository = current
        return current.parent

    def setup(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.root}/bin:/usr/sbin:/usr/bin:/bin",
            "SETUP_ROOT": str(self.root),
            "NGINX_LOG_FOLDER": str(self.root),
            "CERTBOT_FAILS": "",
            "LISTEN_HTTP": "8080",  # those below 1024 are root's
            "LISTEN_HTTPS": "8443",
            **variables,
        }
        command = ["sh", str(self.repository / "deploy/setup_nginx.sh"), *options]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=120, check=False)

    @property
    def called(self) -> list[str]:
        notes = self.root / "called"
        return notes.read_text().splitlines() if notes.exists() else []

    def files(self) -> dict[str, bytes]:
        """All that is there; the stand-ins' notes and nginx' logs aside."""
        found = [path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".log"]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.name != "called"}

    @property
    def written(self) -> str:
        return (self.root / "etc/nginx/conf.d/yral_chat.conf").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    needs_nginx()
    root = tmp_path / "machine"
    for folder in ("bin", "etc/nginx/conf.d", "etc/nginx/sites-enabled"):
        (root / folder).mkdir(parents=True)
    (root / "etc/nginx/sites-enabled/default").write_text("server { listen 80 default_server; }\n")
    (root / "etc/nginx/nginx.conf").write_text(
        f"pid {root}/nginx.pid;\nerror_log {root}/error.log;\nevents {{}}\n"
        f"http {{ include {root}/etc/nginx/conf.d/*.conf; include {root}/etc/nginx/sites-enabled/*; }}\n"
    )
    for name in ("certbot", "systemctl", "apt-get", "usermod"):
        does = CERTBOT if name == "certbot" else ""
        (root / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$SETUP_ROOT/called"\n{does}')
        (root / "bin" / name).chmod(0o755)
    return Machine(root)


def test_shellcheck_finds_nothing() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    scripts = [str(path) for pattern in SCRIPTS for path in ROOT.glob(pattern)]
    assert len(scripts) >= 4
    found = subprocess.run([program, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(machine: Machine) -> None:
    before = machine.files()

    ran = machine.setup(*NEEDED, "--dry-run")

    assert ran.returncode == 0, ran.stderr
    assert machine.files() == before
    assert not machine.called
    for step in ("would remove: ", "would write: ", "systemctl reload-or-restart nginx", "certbot certonly --webroot"):
        assert step in ran.stdout
    assert ran.stdout.endswith("Nothing was done.\n")


def test_a_dry_run_can_be_tried_before_anything_is_installed(machine: Machine, tmp_path: Path) -> None:
    (little := tmp_path / "little").mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in ("envsubst", "certbot", "openssl"):
            (little / program.name).symlink_to(program)
    (machine.root / "bin/certbot").unlink()

    ran = machine.setup(*NEEDED, "--dry-run", PATH=f"{machine.root}/bin:{little}")

    assert ran.returncode == 0, ran.stderr
    assert "apt-get install -y -qq nginx certbot gettext-base openssl" in ran.stdout
    assert ran.stdout.endswith("Nothing was done.\n")


def test_it_sets_up_nginx_and_gets_a_certificate(machine: Machine) -> None:
    ran = machine.setup(*NEEDED, "--staff", "198.51.100.0/24", "--uploads", "/srv/chat/uploads")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"server_name {NAME};" in machine.written
    assert f"ssl_certificate {machine.root}/etc/letsencrypt/live/{NAME}/fullchain.pem;" in machine.written
    assert "198.51.100.0/24 1;" in machine.written
    assert "alias /srv/chat/uploads/;" in machine.written
    assert not (machine.root / "etc/nginx/sites-enabled/default").exists()
    (asked,) = [line for line in machine.called if line.startswith("certbot")]
    assert f"--webroot-path {machine.root}/var/www/acme --domain {NAME} --email ops@example.com" in asked
    assert "--deploy-hook systemctl reload nginx" in asked
    assert "--test-cert" not in asked
    reloads = [index for index, line in enumerate(machine.called) if "reload-or-restart" in line]
    assert reloads[0] < machine.called.index(asked) < reloads[1], (
        "nginx answers the proof, and then takes the certificate"
    )


def test_a_second_time_changes_nothing(machine: Machine) -> None:
    assert machine.setup(*NEEDED).returncode == 0
    before = machine.files()
    assert machine.setup(*NEEDED).returncode == 0

    assert machine.files() == before
    assert "as it is" in machine.setup(*NEEDED, "--dry-run").stdout
    assert "would write" in machine.setup(*NEEDED, "--staff", "198.51.100.7", "--dry-run").stdout
    assert machine.files() == before


def test_without_a_certificate_nginx_runs_on_with_its_own(machine: Machine) -> None:
    ran = machine.setup(*NEEDED, "--staging-ca", CERTBOT_FAILS="yes")

    assert ran.returncode != 0
    assert f"{machine.root}/etc/nginx/yral_chat/tls/fullchain.pem" in machine.written
    assert "--test-cert" in machine.called[-1]
    assert machine.setup(*NEEDED).returncode == 0, "and it can be tried again"


def test_a_configuration_that_nginx_refuses_is_taken_back(machine: Machine) -> None:
    assert machine.setup(*NEEDED).returncode == 0
    before, calls = machine.written, len(machine.called)
    (machine.root / "etc/nginx/conf.d/other.conf").write_text("upstream yral_chat { server 127.0.0.1:1; }\n")

    ran = machine.setup(*NEEDED, "--staff", "198.51.100.7")

    assert ran.returncode == 2
    assert "The one of before is back" in ran.stderr
    assert machine.written == before
    assert len(machine.called) == calls, "nothing was reloaded"


def test_a_first_try_that_nginx_refuses_leaves_what_was_served_before(machine: Machine) -> None:
    (machine.root / "etc/nginx/conf.d/other.conf").write_text("upstream yral_chat { server 127.0.0.1:1; }\n")
    before = {name: text for name, text in machine.files().items() if "sites-enabled" in name or "conf.d" in name}

    assert machine.setup(*NEEDED).returncode == 2

    after = {name: text for name, text in machine.files().items() if "sites-enabled" in name or "conf.d" in name}
    assert after == before


def test_what_the_configuration_includes_is_taken_back_as_well(machine: Machine) -> None:
    """nginx would read it at its next start."""
    machine.release()
    assert machine.setup(*NEEDED).returncode == 0
    before = machine.files()
    (included := machine.repository / "deploy/nginx/yral_chat/forward.inc").write_text("proxy_set_headers X;\n")
    wanted = machine.setup(*NEEDED, "--dry-run").stdout
    assert re.findall("would write: .*", wanted) == [f"would write: {machine.root}/etc/nginx/yral_chat/forward.inc"]

    assert machine.setup(*NEEDED).returncode == 2
    changed = str(included.resolve().relative_to(machine.root))
    assert {k: v for k, v in machine.files().items() if k != changed} == {
        k: v for k, v in before.items() if k != changed
    }


def test_nginx_may_read_the_files_of_users(machine: Machine, tmp_path: Path) -> None:
    """They are for their owner and its group."""
    (uploads := tmp_path / "uploads").mkdir()
    if os.geteuid() == 0:
        shutil.chown(uploads, group="games")
    assert machine.setup(*NEEDED, "--uploads", str(uploads)).returncode == 0
    assert f"usermod -aG {uploads.group()} www-data" in machine.called


# They do what they are for, on free ports of this machine: a proof is fetched as Let's Encrypt does, a hook obeyed.
REAL_SYSTEMCTL = """
case "$*" in
  *enable*) ;;
  *)
    if [ -s "$SETUP_ROOT/nginx.pid" ]; then set -- -s reload; else set --; fi
    nginx -c "$SETUP_ROOT/etc/nginx/nginx.conf" "$@" || exit
    until [ -s "$SETUP_ROOT/nginx.pid" ]; do sleep 0.02; done
    ;;
esac
"""
REAL_CERTBOT = """
proof="$SETUP_ROOT/var/www/acme/.well-known/acme-challenge"
mkdir -p "$proof" "$SETUP_ROOT/etc/letsencrypt/live/chat.example.com"
echo proved >"$proof/token"
said=$(curl -sS -H "Host: chat.example.com" "http://127.0.0.1:$LISTEN_HTTP/.well-known/acme-challenge/token")
[ "$said" = proved ] || exit 1
cd "$SETUP_ROOT/etc/letsencrypt/live/chat.example.com"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$ISSUED" \\
  -keyout privkey.pem -out fullchain.pem 2>/dev/null
while [ "$1" != --deploy-hook ]; do shift; done
sh -c "$2"
"""


def test_a_first_certificate_is_proved_and_served_and_so_is_a_renewed_one(machine: Machine) -> None:
    """nginx runs before there is one."""
    user = "user root;" if os.geteuid() == 0 else ""  # whom the test's folders are open to
    conf = machine.root / "etc/nginx/nginx.conf"
    conf.write_text(user + conf.read_text())
    for name, does in (("systemctl", REAL_SYSTEMCTL), ("certbot", REAL_CERTBOT)):
        (machine.root / "bin" / name).write_text(f"#!/bin/sh\n{does}")
    port = free_port()
    ports = {"LISTEN_HTTP": str(free_port()), "LISTEN_HTTPS": str(port)}

    def serves(name: str) -> bool:
        shown = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME],
            input="", capture_output=True, text=True, check=False,
        )  # fmt: skip
        return f"CN = {name}\n" in shown.stdout or f"CN={name}\n" in shown.stdout

    try:
        for name in ("the-first", "renewed"):
            ran = machine.setup(*NEEDED, ISSUED=name, **ports)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            wait_until(partial(serves, name), f"{name} isn't served", 10)
    finally:
        if pid := (machine.root / "nginx.pid").read_text():
            os.kill(int(pid), signal.SIGTERM)


def test_in_a_release_it_knows_where_the_files_are_and_what_the_service_was_told(machine: Machine) -> None:
    """An admin whose path nginx doesn't know would be open to everybody."""
    (machine.release() / "settings.env").write_text(
        "PORT=8000\nADMIN_PATH = 'staff-7f3a/'\nMAX_AUDIO_SIZE_MB=40 # longer\nCORS_ORIGINS=https://a.example, https://b.example\n"
        'STAFF_NETWORKS="198.51.100.0/24"\n'
    )
    state = machine.root / "var/lib/yral-ai-chat"
    (state / "production").mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(state / "production", group="games")

    ran = machine.setup(*NEEDED, HSTS_SECONDS="7")

    assert ran.returncode == 0, ran.stderr
    assert f"alias {state}/production/uploads/;" in machine.written
    assert f"alias {state}/staging/uploads/;" in machine.written
    assert "(metrics|admin|staff-7f3a)(/|$)" in machine.written
    assert f"client_max_body_size {40 * 1024 * 1024 + 65536};" in machine.written
    assert '"https://b.example" $http_origin;' in machine.written
    assert "198.51.100.0/24 1;" in machine.written
    assert "max-age=7" in machine.written
    assert f"usermod -aG {(state / 'production').group()} www-data" in machine.called, (
        "who uploads first makes the folder"
    )
    assert f"Beware: {state}/staging/uploads isn't there yet." in ran.stdout
    assert machine.setup(*NEEDED, "--staff", "203.0.113.7", ADMIN_PATH="desk/").returncode == 0
    assert "(metrics|admin|desk)(/|$)" in machine.written, "what is said comes first"
    assert "203.0.113.7 1;" in machine.written
    assert "198.51.100.0/24" not in machine.written


def test_a_certificate_for_practice_is_replaced_by_a_real_one(machine: Machine) -> None:
    """certbot would keep it until it ends."""
    assert machine.setup(*NEEDED, "--staging-ca").returncode == 0
    assert "--force-renewal" not in machine.called[-1]
    for forced in (True, False):
        assert machine.setup(*NEEDED).returncode == 0
        asked = [line for line in machine.called if line.startswith("certbot")][-1]
        assert ("--force-renewal" in asked) is forced


def test_what_is_missing_is_installed(machine: Machine) -> None:
    """A machine that has nginx, and no certbot."""
    (machine.root / "bin/certbot").rename(machine.root / "bin/certbot-to-come")
    installs = f'mv "{machine.root}/bin/certbot-to-come" "{machine.root}/bin/certbot"\n'
    script = machine.root / "bin/apt-get"
    script.write_text(script.read_text() + f'[ "$1" = update ] || {installs}')
    if shutil.which("certbot", path="/usr/sbin:/usr/bin:/bin"):
        pytest.skip("certbot is installed here: that it is missing can't be tried.")

    assert machine.setup(*NEEDED).returncode == 0
    assert machine.called[:2] == ["apt-get update -qq", "apt-get install -y -qq certbot"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--domain must be"),
        (("--domain", "chat"), "--domain must be"),
        (("--domain", "chat.example.com; rm -rf /", "--email", "a@b.cd"), "--domain must be"),
        (("--domain", NAME), "--email must be"),
        (("--domain", NAME, "--email", "nobody"), "--email must be"),
        (("--domain",), "--domain needs a value"),
        (("--quickly",), "--quickly"),
        ((*NEEDED, "--staff", "everybody"), "STAFF_NETWORKS must list"),
        ((*NEEDED, "--uploads", "uploads"), "must be an absolute path"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(machine: Machine, options: tuple[str, ...], says: str) -> None:
    ran = machine.setup(*options)
    assert ran.returncode != 0
    assert says in ran.stderr
    assert not (machine.root / "etc/nginx/conf.d/yral_chat.conf").exists()
    assert (machine.root / "etc/nginx/sites-enabled/default").exists()


def test_it_is_for_root(machine: Machine) -> None:
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-s", "--", *NEEDED]
    else:
        command = ["sh", "-s", "--", *NEEDED]
    script = (ROOT / "deploy/setup_nginx.sh").read_bytes()
    ran = subprocess.run(
        command, input=script, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False
    )
    assert ran.returncode == 2
    assert b"must be run by root" in ran.stderr
