"""deploy/deploy.sh step by step, with stand-ins for docker, systemctl and curl."""

import fcntl
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.conftest import wait_until

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

STAND_IN = Path(__file__).with_name("stand_in.sh")
WAYS = ["compose", "systemd"]
one_way = pytest.mark.parametrize("machine", ["systemd"], indirect=True)  # the other is the same here


@dataclass
class Machine:
    root: Path
    folder: Path  # of the stand-ins
    with_: str

    def release(self, name: str) -> Path:
        """Its code has arrived."""
        made = self.root / "releases" / name
        (made / "deploy").mkdir(parents=True)
        shutil.copy(configured.BASE_DIR / "deploy/deploy.sh", made / "deploy")
        for folder in ("nginx", "systemd"):
            (made / "deploy" / folder).mkdir()
            (made / "deploy" / folder / "file").write_text("as ever")
        (made / ".venv/bin").mkdir(parents=True)
        (made / ".venv/bin/python").symlink_to("/bin/true")
        return made

    def set(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text and text + "\n")

    def begin(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        (self.folder / "calls").write_text("")
        env = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "STAND_INS": str(self.folder),
            "DEPLOY_ROOT": str(self.root),
            "PATIENCE": "2",
            "PAUSE": "0.02",
        }
        script = self.root / "releases" / name / "deploy/deploy.sh"
        return subprocess.Popen(
            [str(script), *(arguments or (self.with_,))],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deploy(self, name: str, *arguments: str) -> tuple[int, str]:
        """How it ended, and its last line."""
        run = self.begin(name, *arguments)
        said, _ = run.communicate(timeout=60)
        return run.returncode, said.splitlines()[-1]

    @property
    def steps(self) -> list[str]:
        """What was done, without the questions."""
        calls = (self.folder / "calls").read_text().replace(f"{self.root}/", "").splitlines()
        short = [call.replace("docker compose --project-name yral-ai-chat --file ", "compose ") for call in calls]
        questions = ("curl", " ps ", "config --images", "inspect", "is-active", "journalctl", " logs ", "sudo")
        return [call for call in short if not any(word in call for word in questions)]

    @property
    def runs(self) -> str:
        return (self.folder / "running").read_text().strip()

    def link(self, name: str) -> str:
        return (self.root / name).resolve().name if (self.root / name).exists() else ""


@pytest.fixture(params=WAYS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "srv/production", tmp_path / "stand-ins", request.param)
    (made.folder / "bin").mkdir(parents=True)
    for name in ("docker", "systemctl", "journalctl", "curl", "uv", "sudo"):
        (made.folder / "bin" / name).symlink_to(STAND_IN)
    for file in ("fails", "unhealthy"):
        made.set(file, "")
    made.set("image", "none")
    made.release("1.0.0")
    return made


STEPS = {
    "compose": [
        "docker tag sha256:1.0.0 yral-ai-chat-production:before",
        "compose releases/1.1.0/deploy/compose.yaml build yral-ai-chat",
        "compose releases/1.1.0/deploy/compose.yaml --file releases/1.1.0/deploy/compose.once.yaml run --rm -T folders",
        "compose releases/1.1.0/deploy/compose.yaml --file releases/1.1.0/deploy/compose.once.yaml "
        "run --rm --no-deps -T nginx-once nginx -t",
        "compose releases/1.1.0/deploy/compose.yaml --file releases/1.1.0/deploy/compose.once.yaml "
        "run --rm --no-deps -T yral-ai-chat-once migrate --noinput",
        "compose releases/1.1.0/deploy/compose.yaml stop yral-ai-chat",
        "compose releases/1.1.0/deploy/compose.yaml up --detach --no-build --force-recreate yral-ai-chat",
    ],
    "systemd": [
        "uv sync --frozen --no-dev --extra litestream",
        "systemctl start yral-ai-chat-migrate@production",
        "systemctl stop yral-ai-chat@production",
        "systemctl start yral-ai-chat@production",
    ],
}
UP = "up --detach --no-build --no-deps"
UP_AND_WELL = f"{UP} --wait --wait-timeout 2"
BESIDE = {
    "compose": [
        f"compose releases/1.1.0/deploy/compose.yaml {UP} --force-recreate jobs",
        f"compose current/deploy/compose.yaml {UP_AND_WELL} nginx",
    ],
    "systemd": [],
}
BACK = {
    "compose": [
        "compose releases/1.1.0/deploy/compose.yaml stop yral-ai-chat",
        "docker tag sha256:1.0.0 yral-ai-chat:latest",
        "compose releases/1.0.0/deploy/compose.yaml up --detach --no-build --force-recreate yral-ai-chat",
    ],
    "systemd": ["systemctl stop yral-ai-chat@production", "systemctl start yral-ai-chat@production"],
}


def test_the_first_release_starts_and_leaves_migrating_to_the_entrypoint(machine: Machine) -> None:
    """It alone knows whether a copy must be restored first."""
    assert machine.deploy("1.0.0") == (0, "DEPLOYED: 1.0.0 runs and is well.")
    assert machine.link("current") == "1.0.0"
    assert machine.link("previous") == ""
    assert not [step for step in machine.steps if "migrate" in step]


def test_the_next_one_is_built_and_migrated_while_the_one_before_still_answers(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    assert machine.deploy("1.1.0") == (0, "DEPLOYED: 1.1.0 runs and is well.")
    assert [step for step in machine.steps if "tag sha256:1.1.0" not in step] == STEPS[machine.with_] + BESIDE[
        machine.with_
    ]
    assert (machine.link("current"), machine.link("previous")) == ("1.1.0", "1.0.0")


def test_one_that_is_not_well_is_taken_back(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("unhealthy", "1.1.0")
    code, said = machine.deploy("1.1.0")
    assert code == 1
    assert said.startswith("ROLLED BACK: 1.1.0 isn't well; 1.0.0 runs again. The log is ")
    assert machine.steps == STEPS[machine.with_] + BACK[machine.with_]
    assert machine.link("current") == "1.0.0"
    machine.set("unhealthy", "")
    assert machine.deploy("1.1.0") == (0, "DEPLOYED: 1.1.0 runs and is well."), "and may be tried again"


@pytest.mark.parametrize("step", ["build", "migrate"])
def test_what_fails_before_the_stop_changes_nothing(machine: Machine, step: str) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("fails", {"build": "uv sync\nbuild yral-ai-chat", "migrate": "migrate"}[step])
    code, said = machine.deploy("1.1.0")
    assert code == 1
    assert said.startswith("NOT DEPLOYED: 1.1.0 can't ")
    assert not [one for one in machine.steps if "stop" in one or " up " in one or "start yral-ai-chat@" in one]
    assert machine.link("current") == "1.0.0"
    assert machine.runs == "1.0.0"


def test_one_that_does_not_start_is_taken_back(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("fails", "1.1.0/deploy/compose.yaml up")
    if machine.with_ == "systemd":
        machine.set("unhealthy", "1.1.0")
    assert machine.deploy("1.1.0")[0] == 1
    assert machine.runs == "1.0.0"


def test_it_says_so_loudly_when_nothing_that_is_well_runs(machine: Machine) -> None:
    machine.set("unhealthy", "1.0.0 1.1.0")
    code, said = machine.deploy("1.0.0")
    assert code == 2
    assert said.startswith("FAILED: 1.0.0 isn't well, and nothing ran here before it.") or machine.with_ == "compose"
    machine.set("unhealthy", "")
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("unhealthy", "1.0.0 1.1.0")
    code, said = machine.deploy("1.1.0")
    assert code == 2
    assert said.startswith("FAILED: 1.1.0 isn't well, and going back didn't help either: nothing that is well runs.")


def test_it_can_be_run_again(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    for _ in range(2):
        assert machine.deploy("1.1.0") == (0, "DEPLOYED: 1.1.0 runs and is well.")
    assert (machine.link("current"), machine.link("previous")) == ("1.1.0", "1.0.0")


def test_the_one_before_can_be_deployed_again_by_hand(machine: Machine) -> None:
    """As upgrading.md says: by its own script, through the link."""
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.deploy("1.1.0")
    assert machine.deploy("../previous") == (0, "DEPLOYED: 1.0.0 runs and is well.")
    assert (machine.link("current"), machine.link("previous")) == ("1.0.0", "1.1.0")


def test_nginx_obeys_a_changed_configuration_that_was_tried_before_anything_stops(machine: Machine) -> None:
    machine.deploy("1.0.0")
    (machine.release("1.1.0") / "deploy/nginx/file").write_text("otherwise")
    assert machine.deploy("1.1.0")[0] == 0
    log = (machine.root / "deploy.log").read_text()
    if machine.with_ == "systemd":
        assert "deploy/nginx has changed: run setup_nginx.sh of this release as root" in log
        return
    trial = next(number for number, step in enumerate(machine.steps) if "nginx-once nginx -t" in step)
    assert trial < next(number for number, step in enumerate(machine.steps) if " stop " in step)
    assert machine.steps[-1] == f"compose current/deploy/compose.yaml {UP_AND_WELL} --force-recreate nginx"


@pytest.mark.parametrize("machine", ["compose"], indirect=True)
def test_settings_that_nginx_cannot_use_are_found_before_anything_stops(machine: Machine) -> None:
    """Its files are as before: a network of the staff may be wrong."""
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("fails", "nginx -t")
    code, said = machine.deploy("1.1.0")
    assert (code, machine.runs) == (1, "1.0.0")
    assert said.startswith("NOT DEPLOYED: 1.1.0 can't be built; nothing was changed")
    assert not [step for step in machine.steps if " stop " in step or " up " in step]


@pytest.mark.parametrize("machine", ["compose"], indirect=True)
def test_what_does_not_start_beside_the_service_ends_it_with_another_code(machine: Machine) -> None:
    """A workflow must see it: nobody comes to a service whose nginx is down."""
    machine.deploy("1.0.0")
    for fails, named in ((" 2 nginx", "nginx"), (" jobs", "jobs"), (" 2 nginx\n jobs", "jobs nginx")):
        machine.set("fails", fails)
        code, said = machine.deploy("1.0.0")
        assert code == 3
        assert said.startswith(f"DEPLOYED, BUT: 1.0.0 runs and is well; this doesn't start: {named}. The log is ")
    machine.set("fails", "")
    assert machine.deploy("1.0.0")[0] == 0


@pytest.mark.parametrize("machine", ["systemd"], indirect=True)
def test_it_says_that_changed_units_are_to_be_installed_again(machine: Machine) -> None:
    machine.deploy("1.0.0")
    (machine.release("1.1.0") / "deploy/systemd/file").write_text("otherwise")
    machine.deploy("1.1.0")
    assert "deploy/systemd has changed: as root copy it" in (machine.root / "deploy.log").read_text()
    (machine.root / "deploy.log").unlink()
    (machine.release("1.2.0") / "deploy/systemd/file").write_text("otherwise")
    machine.deploy("1.2.0")
    assert "has changed" not in (machine.root / "deploy.log").read_text()


@pytest.mark.parametrize("machine", ["compose"], indirect=True)
def test_staging_reads_its_own_settings_and_leaves_nginx_alone(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.root = machine.root.with_name("staging")
    release = machine.release("1.0.0")
    (machine.root / "settings.env").write_text("LOG_LEVEL=DEBUG\n")
    assert machine.deploy("1.0.0")[0] == 0
    assert (release / ".env.staging").read_text() == "LOG_LEVEL=DEBUG\n"
    assert (release / "data").resolve() == machine.root / "data"
    started = [step.rpartition(" ")[2] for step in machine.steps if " up " in step]
    assert started == ["yral-ai-chat-staging", "jobs-staging"]


@one_way
def test_two_at_once_are_refused(machine: Machine) -> None:
    with (machine.root / ".deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert machine.deploy("1.0.0") == (75, "Another deployment of production is under way.")
    assert machine.deploy("1.0.0")[0] == 0


@one_way
def test_it_goes_on_when_who_started_it_goes_away(machine: Machine) -> None:
    """A connection that breaks closes its output and hangs up."""
    run = machine.begin("1.0.0")
    wait_until(lambda: (machine.root / "deploy.log").exists(), "it didn't begin")
    assert run.stdout
    run.stdout.close()
    run.send_signal(signal.SIGHUP)
    assert run.wait(30) == 0
    assert "DEPLOYED: 1.0.0 runs and is well." in (machine.root / "deploy.log").read_text()


def test_a_stop_of_it_takes_back_what_is_half_done(machine: Machine) -> None:
    machine.deploy("1.0.0")
    machine.release("1.1.0")
    machine.set("unhealthy", "1.1.0")
    run = machine.begin("1.1.0")
    wait_until(lambda: machine.link("current") == "1.1.0", "it didn't switch")
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "Interrupted." in said
    assert "ROLLED BACK" in said
    assert machine.link("current") == "1.0.0"


@one_way
def test_only_the_newest_releases_are_kept(machine: Machine) -> None:
    for number in range(8):
        if number:
            os.utime(machine.release(f"1.{number}.0"), (number, number))
        assert machine.deploy(f"1.{number}.0")[0] == 0
    kept = {folder.name for folder in (machine.root / "releases").iterdir()}
    assert {"1.7.0", "1.6.0"} <= kept
    assert len(kept) <= 6


@pytest.mark.parametrize("machine", ["compose"], indirect=True)  # with systemd they are in /var/lib
def test_the_data_stay_where_they_are(machine: Machine) -> None:
    (machine.root / "settings.env").write_text("GEMINI_MODEL=gemini-2.5-flash\n")
    machine.deploy("1.0.0")
    (machine.root / "releases/1.0.0/data/yral_chat.db").write_text("rows")
    machine.release("1.1.0")
    machine.deploy("1.1.0")
    release = machine.root / "releases/1.1.0"
    assert (release / "data/yral_chat.db").read_text() == "rows"
    assert (release / ".env").read_text().startswith("GEMINI_MODEL")
    assert (release / ".env.staging").readlink() == machine.root.parent / "staging/settings.env"
    assert any("--env-file settings.env --file releases/1.1.0" in step for step in machine.steps)


@one_way
@pytest.mark.parametrize("arguments", [[], ["kubernetes"]])
def test_a_wrong_call_says_how_it_is_called(machine: Machine, arguments: list[str]) -> None:
    run = machine.begin("1.0.0", *(arguments or [""]))
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 64
    assert "Usage: ROOT/releases/NAME/deploy/deploy.sh compose|systemd" in said
    assert not (machine.root / "current").exists()
