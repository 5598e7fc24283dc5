"""deploy/jobs.sh, the timers of a machine with Docker; test_dockerfile.py lets it do its jobs for real."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.conftest import wait_until

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

EXPORT, RECONNECT = "manage.py export_analytics", "deploy/metabase/dashboard.py --reconnect"
PURGE = ["manage.py purge_media --delete", "manage.py clearsessions"]
PROGRAMS = {
    "python": 'echo "$*" >>"$FOLDER/calls"; case "$*" in *"$(cat "$FOLDER/fails")"*) exit 1 ;; esac',
    "date": 'exec /bin/date -d "$(cat "$FOLDER/now")" "$@"',
    "sleep": 'echo "$*" >>"$FOLDER/pauses"; exec /bin/sleep 0.02',
}


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, does in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/sh\n{does}\n")
            (folder / name).chmod(0o755)
        (folder / "fails").write_text("nothing")
        (folder / "calls").write_text("")

    @contextmanager
    def at(self, now: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
        """It runs, and has looked twice what is due."""
        (self.folder / "now").write_text(f"{now} UTC")
        (self.folder / "pauses").write_text("")
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "FOLDER": str(self.folder), **variables}
        env["JOBS_FOLDER"] = str(self.folder / "jobs")
        command = [str(configured.BASE_DIR / "deploy/jobs.sh")]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as run:
            try:
                wait_until(lambda: len(self.pauses()) >= 2, "it doesn't pause")
                yield run
            finally:
                run.terminate()

    def pauses(self) -> list[str]:
        return (self.folder / "pauses").read_text().split()

    def done(self, now: str, **variables: str) -> list[str]:
        (self.folder / "calls").write_text("")
        with self.at(now, **variables):
            return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_each_job_is_done_once_in_its_time_also_over_restarts(machine: Machine) -> None:
    assert machine.done("2026-05-01 02:59") == [EXPORT]
    assert machine.done("2026-05-01 02:59") == []
    assert machine.done("2026-05-01 03:00") == [EXPORT, *PURGE]
    assert machine.done("2026-05-01 04:00") == [EXPORT]
    assert machine.done("2026-05-02 02:00") == [EXPORT]
    assert machine.done("2026-05-02 23:10") == [EXPORT, *PURGE], "what was slept through is made up for"


def test_the_drill_is_done_where_there_is_a_copy(machine: Machine) -> None:
    assert machine.done("2026-05-01 04:00", ENABLE_LITESTREAM="true") == [EXPORT, *PURGE, "manage.py restore_drill"]
    assert machine.done("2026-05-01 04:30", ENABLE_LITESTREAM="true") == []
    assert machine.done("2026-05-02 04:00", ENABLE_LITESTREAM="false") == [EXPORT, *PURGE]


def test_metabase_is_told_of_each_export_if_it_has_a_key(machine: Machine) -> None:
    assert machine.done("2026-05-01 01:00", METABASE_API_KEY="mb_key") == [EXPORT, RECONNECT]
    assert machine.done("2026-05-01 02:00", METABASE_API_KEY="") == [EXPORT]


def test_a_job_that_fails_is_said_and_holds_up_no_other(machine: Machine) -> None:
    (machine.folder / "fails").write_text("export_analytics")
    with machine.at("2026-05-01 05:00") as run:
        assert (machine.folder / "calls").read_text().splitlines() == [EXPORT, *PURGE]
        run.terminate()
        assert run.stderr
        assert f"jobs: failed: python {EXPORT}" in run.stderr.read()


def test_a_stop_ends_it_and_the_job_that_it_is_at(machine: Machine) -> None:
    (machine.folder / "python").write_text(f'#!/bin/sh\necho $$ >"{machine.folder}/pid"; exec /bin/sleep 60\n')
    (machine.folder / "now").write_text("2026-05-01 01:00 UTC")
    env = {"PATH": f"{machine.folder}:/usr/bin:/bin", "FOLDER": str(machine.folder)}
    env["JOBS_FOLDER"] = str(machine.folder / "jobs")
    with subprocess.Popen([str(configured.BASE_DIR / "deploy/jobs.sh")], env=env) as run:
        wait_until(lambda: (machine.folder / "pid").exists() and (machine.folder / "pid").read_text(), "no job began")
        run.send_signal(signal.SIGTERM)
        assert run.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((machine.folder / "pid").read_text()), 0)
