"""deploy/setup_nginx.sh below another root: it would change this machine's nginx. A real nginx looks at what it writes;
certbot, systemctl and others are stand-ins that note how they were called."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.nginx import needs_nginx

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

ROOT: Path = configured.BASE_DIR
NAME = "chat.example.com"
NEEDED = ("--domain", NAME, "--email", "ops@example.com")
SCRIPTS = ("deploy/*.sh", "deploy/nginx/*.sh", "deploy/nginx/*.envsh")
CERTBOT = """
live="$SETUP_ROOT/etc/letsencrypt/live/chat.example.com"
grep -q "ssl_certificate " "$SETUP_ROOT/etc/nginx/conf.d/yral_chat.conf" || exit 1
[ -z "$CERTBOT_FAILS" ] || exit 1
mkdir -p "$live"
cp "$SETUP_ROOT"/etc/nginx/yral_chat/tls/* "$live/"
"""


@dataclass
class Machine:
    root: Path

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
        command = ["sh", str(ROOT / "deploy/setup_nginx.sh"), *options]
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
    for step in ("rm -f", "would write: ", "systemctl reload-or-restart nginx", "certbot certonly --webroot"):
        assert step in ran.stdout
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


def test_nginx_may_read_the_files_of_users(machine: Machine, tmp_path: Path) -> None:
    """They are for their owner and its group."""
    (uploads := tmp_path / "uploads").mkdir()
    if os.geteuid() == 0:
        shutil.chown(uploads, group="games")
    assert machine.setup(*NEEDED, "--uploads", str(uploads)).returncode == 0
    assert f"usermod -aG {uploads.group()} www-data" in machine.called


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
