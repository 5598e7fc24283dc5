"""deploy/deliver.sh, which the workflow runs: with a stand-in for ssh, whose server is a folder of this machine."""

import fcntl
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.conf import settings as configured
from dotenv import dotenv_values

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

HERE = Path(__file__).parent
AWKWARD = "a $HOME `date` \"quoted\" 'single' \\n # no comment, ${X} =="
SECRETS = {
    "SSH_HOST": "chat.example",
    "SSH_USER": "deployer",
    "SSH_PRIVATE_KEY": "-----BEGIN KEY-----\ncanary-of-ssh\n-----END KEY-----",
    "SSH_KNOWN_HOSTS": "chat.example ssh-ed25519 AAAA",
    "JWT_SECRET_KEY": f"canary-of-jwt {AWKWARD}",
    "GEMINI_API_KEY": "canary-of-gemini",
}
NEEDED = [".env.example", "CHANGELOG.md", "deploy/deliver.sh", "deploy/deploy.sh", "deploy/settings_file.py"]


@dataclass
class Runner:
    """A clone with one commit, and the machine that it can reach."""

    clone: Path
    server: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def deliver(self, instance: str = "staging", **env: str) -> tuple[int, str]:
        made = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "TMPDIR": str(self.folder / "tmp"),
            "STAND_INS": str(self.folder),
            "DEPLOY_ROOT": str(self.server / instance),
            "DEPLOY": "systemd",
            "VARIABLES": json.dumps({"DEPLOY_ROOT": str(self.server), "SSH_PORT": "2222", "GEMINI_MODEL": "gemini-x"}),
            **SECRETS,
            **env,
        }
        for file in ("calls", "ssh", "modes"):
            (self.folder / file).write_text("")
        command = [str(self.clone / "deploy/deliver.sh"), instance]
        run = subprocess.run(command, env=made, capture_output=True, text=True, timeout=120, check=False)
        return run.returncode, run.stdout + run.stderr

    def settings(self, instance: str = "staging") -> dict[str, str | None]:
        return dict(dotenv_values(self.server / instance / "settings.env", interpolate=False))

    def commit(self) -> str:
        git = ["git", "-c", "user.name=Tess", "-c", "user.email=tess@chat.example", "-c", "commit.gpgsign=false"]
        subprocess.run([*git, "add", "-f", "."], cwd=self.clone, check=True)
        subprocess.run([*git, "commit", "-qm", "Change", "--allow-empty"], cwd=self.clone, check=True)
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=self.clone, capture_output=True, text=True, check=True
        ).stdout.strip()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path / "clone", tmp_path / "srv", tmp_path / "stand-ins")
    for folder in (made.folder / "bin", made.folder / "tmp", made.server / "staging", made.server / "production"):
        folder.mkdir(parents=True)
    for name in ("docker", "systemctl", "journalctl", "curl", "uv", "sudo"):
        (made.folder / "bin" / name).symlink_to(HERE / "stand_in.sh")
    (made.folder / "bin/ssh").symlink_to(HERE / "ssh.sh")
    for file in ("fails", "unhealthy"):
        (made.folder / file).write_text("")
    (made.folder / "image").write_text("none")
    for name in NEEDED:
        (made.clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(configured.BASE_DIR / name, made.clone / name)
    (made.clone / "yral_chat").mkdir()
    shutil.copy(configured.BASE_DIR / "yral_chat/__init__.py", made.clone / "yral_chat")
    (made.clone / "CHANGELOG.md").write_text("## 1.2.3 – 2026-01-31\n")
    (made.clone / ".venv/bin").mkdir(parents=True)
    (made.clone / ".venv/bin/python").symlink_to("/bin/true")
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=made.clone, check=True)
    made.commit()
    return made


def test_the_commit_arrives_with_its_settings_and_runs(runner: Runner) -> None:
    commit = runner.commit()
    code, said = runner.deliver()
    assert code == 0, said
    name = f"1.2.3+{commit[:12]}"
    assert said.splitlines()[-1] == f"staging is at {name}."
    assert f"DEPLOYED: {name} runs and is well." in said
    release = runner.server / "staging/current"
    assert release.resolve().name == name
    assert (release / "COMMIT").read_text() == commit
    assert not (runner.server / "staging/.incoming").exists()
    assert runner.settings() == {
        "GEMINI_MODEL": "gemini-x",
        "JWT_SECRET_KEY": SECRETS["JWT_SECRET_KEY"],
        "GEMINI_API_KEY": "canary-of-gemini",
    }
    assert (runner.server / "staging/settings.env").stat().st_mode & 0o7 == 0
    assert runner.deliver()[0] == 0, "and once more"


def test_no_secret_is_on_a_command_line_and_no_file_stays(runner: Runner) -> None:
    code, said = runner.deliver()
    assert code == 0, said
    calls = (runner.folder / "ssh").read_text()
    for line in calls.splitlines():
        if line.startswith("ssh "):
            assert "-p 2222 -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes" in line
            assert "-- deployer@chat.example" in line
    everything = (
        calls + said + (runner.folder / "calls").read_text() + (runner.server / "staging/deploy.log").read_text()
    )
    assert "canary" not in everything
    assert (runner.folder / "key").read_text().strip() == SECRETS["SSH_PRIVATE_KEY"]
    assert set((runner.folder / "modes").read_text().split()) == {"600"}
    assert list((runner.folder / "tmp").iterdir()) == []


def test_new_settings_are_taken_back_with_the_release(runner: Runner) -> None:
    first = runner.commit()
    assert runner.deliver()[0] == 0
    before = runner.settings()
    second = runner.commit() if runner.commit() != first else ""
    (runner.folder / "unhealthy").write_text(f"1.2.3+{second[:12]}\n")
    code, said = runner.deliver(GEMINI_API_KEY="canary-of-another-key")
    assert code == 1, said
    assert "ROLLED BACK" in said
    assert "The deployment to staging ended with 1." in said
    assert runner.settings() == before
    assert (runner.server / "staging/current").resolve().name == f"1.2.3+{first[:12]}"
    (runner.folder / "unhealthy").write_text("\n")
    assert runner.deliver(GEMINI_API_KEY="canary-of-another-key")[0] == 0
    assert runner.settings()["GEMINI_API_KEY"] == "canary-of-another-key"
    assert not list((runner.server / "staging").glob("settings.env.*"))


def test_settings_that_nobody_took_do_not_wait_for_the_next_deployment(runner: Runner) -> None:
    assert runner.deliver()[0] == 0
    with (runner.server / "staging/.deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = runner.deliver(GEMINI_API_KEY="canary-of-another-key")
    assert code == 75
    assert "Another deployment of staging is under way." in said
    assert not list((runner.server / "staging").glob("settings.env.*"))
    assert runner.settings()["GEMINI_API_KEY"] == "canary-of-gemini"


def test_without_settings_those_of_the_server_stay(runner: Runner) -> None:
    (runner.server / "staging/settings.env").write_text("GEMINI_MODEL=kept\n")
    nothing = {"JWT_SECRET_KEY": "", "GEMINI_API_KEY": "", "VARIABLES": json.dumps({"DEPLOY_ROOT": str(runner.server)})}
    assert runner.deliver(**nothing)[0] == 0
    assert runner.settings() == {"GEMINI_MODEL": "kept"}


def test_a_variable_that_is_no_setting_is_named_and_left_out(runner: Runner) -> None:
    variables = {"DEPLOY_ROOT": str(runner.server), "GEMINI_MODL": "x", "ENVIRONMENT": "production"}
    code, said = runner.deliver(VARIABLES=json.dumps(variables))
    assert code == 0
    assert "The variable GEMINI_MODL is no setting: it is left out." in said
    assert runner.settings().keys() == {"JWT_SECRET_KEY", "GEMINI_API_KEY"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"SSH_KNOWN_HOSTS": ""}, "SSH_KNOWN_HOSTS isn't set, as a secret of the environment staging."),
        *(({"GEMINI_API_KEY": value}, "GEMINI_API_KEY holds") for value in ("a\\\\b", "a\\'b", "a\\")),
        ({"DEPLOY": "kubernetes"}, "DEPLOY must be compose or systemd."),
        ({"DEPLOY": "compose", "VARIABLES": ""}, "SERVER_NAME isn't among the settings"),
        ({"VARIABLES": '{"DEPLOY_ROOT": "/srv/$(id)"}'}, "DEPLOY_ROOT must be a path"),
        ({"VARIABLES": '{"SSH_PORT": "22 -o x"}'}, "SSH_PORT must be a number."),
    ],
)
def test_what_is_missing_or_wrong_is_named_before_anything_happens(
    runner: Runner, wrong: dict[str, str], why: str
) -> None:
    code, said = runner.deliver(**wrong)
    assert code != 0
    assert f"NOT DEPLOYED: {why}" in said
    assert (runner.folder / "ssh").read_text() == ""


def test_a_name_that_is_not_well_from_outside_fails_the_delivery(runner: Runner) -> None:
    variables = {"DEPLOY_ROOT": str(runner.server), "PUBLIC_URL": "https://chat.example"}
    assert runner.deliver(VARIABLES=json.dumps(variables))[0] == 0
    assert "https://chat.example/health" in (runner.folder / "calls").read_text()
    (runner.folder / "fails").write_text("https://chat.example/health\n")
    code, said = runner.deliver(VARIABLES=json.dumps(variables))
    assert code == 1
    assert "https://chat.example/health isn't well. Look at nginx, the name and the certificate." in said


def test_every_setting_comes_through_with_any_value(runner: Runner) -> None:
    """Also what only Docker Compose asks for, which the service leaves alone."""
    named = [line.partition("=")[0] for line in (configured.BASE_DIR / ".env.example").read_text().splitlines()]
    known = {name for name in (one.lstrip("# ") for one in named) if name.isupper() and " " not in name}
    env = {**os.environ, "VARIABLES": json.dumps({name: f"{name} {AWKWARD}" for name in known})}
    env = {name: value for name, value in env.items() if name not in known}
    script = str(configured.BASE_DIR / "deploy/settings_file.py")
    run = subprocess.run(["python3", script], env=env, capture_output=True, text=True, check=True)
    (runner.folder / "all.env").write_text(run.stdout)
    read = dotenv_values(runner.folder / "all.env", interpolate=False)
    assert read == {name: f"{name} {AWKWARD}" for name in known - {"ENVIRONMENT", "APP_VERSION"}}


def test_what_only_docker_compose_asks_for_may_be_a_variable(runner: Runner) -> None:
    (runner.clone / "deploy/compose.yaml").write_text(
        'services: {a: {environment: {X: "${SERVER_NAME:-localhost}"}}}\n'
    )
    variables = {"DEPLOY_ROOT": str(runner.server), "SERVER_NAME": "chat.example"}
    assert runner.deliver(VARIABLES=json.dumps(variables))[0] == 0
    assert runner.settings()["SERVER_NAME"] == "chat.example"
