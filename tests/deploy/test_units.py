"""The units of a machine without Docker: systemd understands them, and what they start is there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.core.management import get_commands

pytestmark = pytest.mark.own_database

FOLDER = configured.BASE_DIR / "deploy/systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
TIMERS = sorted(FOLDER.glob("*.timer"))
MOST_EXPOSED = 20  # of 100, by systemd's own reckoning; a service without any hardening has 96


def lines(file: Path) -> list[tuple[str, str]]:
    return re.findall(r"^(\w+)=(.*)$", file.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's files as the units expect them, for the instance production."""
    if shutil.which("systemd-analyze") is None:
        assert "CI" not in os.environ, "CI must verify the units: systemd-analyze isn't installed."
        pytest.skip("systemd-analyze isn't installed: the units weren't verified.")
    made = tmp_path_factory.mktemp("root")
    units = made / "etc/systemd/system"
    shutil.copytree(FOLDER, units)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "timers", "network-online", "time-sync", "time-set"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=There\n")
    (units / "tmp.mount").write_text("[Mount]\nWhat=tmpfs\nWhere=/tmp\n")
    for release in ("current", "next"):
        program = made / "srv/yral-ai-chat/production" / release / "deploy/run.sh"
        program.parent.mkdir(parents=True)
        shutil.copy(configured.BASE_DIR / "deploy/run.sh", program)
    (made / "bin").mkdir()
    shutil.copy("/bin/true", made / "bin/kill")
    return made


def analyze(root: Path, *words: str) -> tuple[int, str]:
    run = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("unit", [*SERVICES, *TIMERS], ids=lambda path: path.name)
def test_systemd_understands_it(root: Path, unit: Path) -> None:
    instance = unit.name.replace("@", "@production")
    code, said = analyze(root, "verify", f"--root={root}", "--man=no", instance)
    assert (code, said) == (0, "")


def test_a_wrong_unit_is_found(root: Path) -> None:
    wrong = root / "etc/systemd/system/wrong.service"
    wrong.write_text("[Service]\nExecStart=/srv/nothing\nMemoryMux=1G\n")
    code, said = analyze(root, "verify", f"--root={root}", "--man=no", "wrong.service")
    assert code != 0
    assert "MemoryMux" in said
    assert "/srv/nothing" in said


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_it_may_do_little(root: Path, unit: Path) -> None:
    instance = unit.name.replace("@", "@production")
    words = ("security", "--offline=true", f"--root={root}", f"--threshold={MOST_EXPOSED}", "--no-pager", instance)
    code, said = analyze(root, *words)
    assert code == 0, said


@pytest.mark.parametrize("timer", TIMERS, ids=lambda path: path.name)
def test_a_timer_has_its_service_and_a_time(root: Path, timer: Path) -> None:
    assert timer.with_suffix(".service") in SERVICES
    assert analyze(root, "calendar", dict(lines(timer))["OnCalendar"])[0] == 0


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_what_it_starts_is_part_of_a_release(unit: Path) -> None:
    for key, command in lines(unit):
        if key == "ExecStart":
            program, *words = command.split()
            path = re.fullmatch(r"/srv/yral-ai-chat/%i/(?:current|next)/(.+)", program)
            assert path
            assert os.access(configured.BASE_DIR / path[1], os.X_OK)
            if "manage.py" in words:
                assert words[words.index("manage.py") + 1] in get_commands()
            else:
                assert os.access(configured.BASE_DIR / words[0], os.X_OK)


def test_the_jobs_have_the_settings_and_the_limits_of_the_service() -> None:
    """They are written down twice, as systemd has no way to share them between the two."""
    shared = {"User", "Group", "UMask", "StateDirectory", "StateDirectoryMode", "LoadCredential", "Environment"}
    service = lines(FOLDER / "yral-ai-chat@.service")
    common = lines(FOLDER / "yral-ai-chat-.service.d/common.conf")
    hardening = {key for key, _ in service if re.match("Protect|Private|Restrict|Capab|SystemCall|NoNew|Ambient", key)}
    for wanted in sorted(shared | hardening):
        assert [value for key, value in common if key == wanted] == [value for key, value in service if key == wanted]
    assert len(hardening) > 15


def test_the_export_lies_in_a_folder_of_its_own_below_the_state() -> None:
    """That folder alone may be shown to a dashboard: beside the database lie keys."""
    common = lines(FOLDER / "yral-ai-chat-.service.d/common.conf")
    set_ = dict(value.split("=", 1) for key, value in common if key == "Environment" and " " not in value)
    state = f"/var/lib/{dict(common)['StateDirectory']}"
    assert set_["ANALYTICS_PATH"] == f"{state}/analytics/analytics.db"
    assert set_["DATABASE_PATH"] == f"{state}/yral_chat.db"


def test_it_is_given_the_time_that_it_needs_to_stop() -> None:
    """For the longest stream (GRACEFUL_TIMEOUT), and for Litestream's last frames (25 s)."""
    seconds = int(dict(lines(FOLDER / "yral-ai-chat@.service"))["TimeoutStopSec"])
    assert seconds >= configured.GRACEFUL_TIMEOUT + 25
    assert dict(lines(FOLDER / "yral-ai-chat@.service"))["KillMode"] == "mixed", "TERM is for the entrypoint alone"


def test_secrets_come_as_files_that_only_the_unit_can_read(tmp_path: Path) -> None:
    (tmp_path / "secret_JWT_SECRET_KEY").write_text("x")
    (tmp_path / "other").write_text("x")
    env = {"PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    run = [str(configured.BASE_DIR / "deploy/run.sh"), "env"]
    said = subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout
    assert f"JWT_SECRET_KEY_FILE={tmp_path}/secret_JWT_SECRET_KEY\n" in said
    assert said.count("_FILE=") == 1
    del env["CREDENTIALS_DIRECTORY"]
    assert "_FILE" not in subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout
