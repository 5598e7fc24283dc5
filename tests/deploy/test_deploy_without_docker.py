"""deploy/deploy.sh on a machine without Docker, for real: releases with environments of their own, the units, the
entrypoint, gunicorn, a database with rows. Only systemd itself is a stand-in (systemctl.py)."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.fake_gemini import FakeGemini
from tests.servers import API_KEY, JWT_SECRET, Server, free_port

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

UNIT = "yral-ai-chat@production"
COLUMN = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("conversations", "{after}")]
    operations = [migrations.AddField("message", "later", models.TextField(null=True))]
"""


class Machine:
    """Paths of the units begin in its folder instead of at /."""

    def __init__(self, folder: Path, gemini_url: str) -> None:
        self.folder, self.port = folder, free_port()
        self.root = folder / "srv/yral-ai-chat/production"
        self.secrets = folder / "etc/yral-ai-chat/production/secrets"
        self.database = folder / "var/lib/yral-ai-chat/production/yral_chat.db"
        self.root.mkdir(parents=True)
        self.secrets.mkdir(parents=True)
        (folder / "var/lib").mkdir(parents=True)
        (folder / "var/yral-ai-chat").symlink_to("lib/yral-ai-chat")
        (folder / "var/lib/yral-ai-chat/production").mkdir(parents=True)
        (self.secrets / "JWT_SECRET_KEY").write_text(f"{JWT_SECRET}\n")
        (self.secrets / "GEMINI_API_KEY").write_text(f"{API_KEY}\n")
        (self.root / "settings.env").write_text(
            f"PORT={self.port}\nHOST=127.0.0.1\nGEMINI_BASE_URL={gemini_url}\nWEB_CONCURRENCY=1\nWEB_THREADS=8\n"
        )
        self.install_units()

    def install_units(self) -> None:
        shutil.copytree(configured.BASE_DIR / "deploy/systemd", self.folder / "units")
        self.move_paths(self.folder / "units")
        program = self.folder / "bin/systemctl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("systemctl.py")} "$@"\n')
        (self.folder / "bin/systemd-run").symlink_to(Path(__file__).with_name("systemd_run.sh"))
        (self.folder / "bin/journalctl").write_text(f"#!/bin/sh\ntail -n 30 {self.folder}/journal-{UNIT}\n")
        (self.folder / "bin/sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
        for file in program.parent.iterdir():
            file.chmod(0o755)

    def move_paths(self, units: Path) -> None:
        for file in (path for path in units.rglob("*") if path.is_file()):
            file.write_text(re.sub("(?<=[=:])(?=/(srv|etc|var)/)", str(self.folder), file.read_text()))

    def release(self, name: str) -> Path:
        """Its code arrives, as it does by deliver.sh: what git knows, and nothing that was made here."""
        made = self.root / "releases" / name
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        known = subprocess.run(listed, cwd=configured.BASE_DIR, capture_output=True, text=True, check=True)
        for file in filter(None, known.stdout.split("\0")):
            if not file.startswith("tests/") and (configured.BASE_DIR / file).is_file():
                (made / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(configured.BASE_DIR / file, made / file)
        if (built := self.root / "current/.venv").exists():  # the lock is the same: uv finds nothing left to do
            subprocess.run(["cp", "-al", built.resolve(), made / ".venv"], check=True)
        self.move_paths(made / "deploy/systemd")
        (made / "CHANGELOG.md").write_text(f"## {name} – 2026-01-31\n")
        return made

    def run(self, *command: str) -> tuple[int, str]:
        env = {name: os.environ[name] for name in ("HOME", "UV_INDEX_URL", "UV_CACHE_DIR") if name in os.environ}
        env |= {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}:{configured.BASE_DIR}/.tools/bin",
            "STAND_INS": str(self.folder),
            "UV_PYTHON": str(Path(sys.executable).resolve()),
            "UV_COMPILE_BYTECODE": "0",
            "UV_OFFLINE": os.environ.get("UV_OFFLINE", "0"),
            "PORT": str(self.port),
            "PATIENCE": "4",  # systemctl comes back when it listens
            "PAUSE": "0.1",
        }
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
        return done.returncode, done.stdout + done.stderr

    def deploy(self, name: str) -> tuple[int, str]:
        return self.run(str(self.root / "releases" / name / "deploy/deploy.sh"), "systemd")

    def manage(self, *words: str) -> tuple[int, str]:
        """As an operator calls it."""
        return self.run(str(self.root / "current/deploy/manage.sh"), *words)

    def systemctl(self, *words: str) -> int:
        return self.run(str(self.folder / "bin/systemctl"), *words)[0]

    @property
    def server(self) -> Server:
        """What answers there now."""
        nobody = subprocess.Popen(["true"])
        nobody.wait()
        return Server(nobody, self.port, self.folder / f"journal-{UNIT}", f"sqlite:///{self.database}")

    @property
    def version(self) -> str:
        return str(self.server.call("GET", "/", user=None).json()["version"])

    def columns(self) -> set[str]:
        with closing(sqlite3.connect(self.database)) as connection:
            return {row[1] for row in connection.execute("PRAGMA table_info(messages)")}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    model = FakeGemini()
    made = Machine(tmp_path, model.url)
    yield made
    made.systemctl("stop", UNIT)
    model.stop()


def newest_migration() -> str:
    return sorted((configured.BASE_DIR / "conversations/migrations").glob("0*.py"))[-1].stem


def test_a_release_that_is_not_well_is_rolled_back_and_the_data_stay(machine: Machine) -> None:
    """One test for the whole life of a machine: each release takes seconds to build."""
    conversation = first_release(machine)
    one_that_is_ill(machine, conversation)
    one_that_does_not_start(machine)
    the_next_one(machine, conversation)
    the_jobs(machine)
    settings_that_cannot_work(machine)
    everything = "".join(file.read_text() for file in [machine.root / "deploy.log", *machine.folder.glob("journal-*")])
    assert JWT_SECRET not in everything
    assert API_KEY not in everything
    assert machine.systemctl("stop", UNIT) == 0


def commands_of_the_handbooks() -> list[str]:
    """What an operator runs through manage.sh; createsuperuser asks for a password."""
    books = "".join(
        (configured.BASE_DIR / f"docs/operations/{name}.md").read_text() for name in ("deploying", "runbook")
    )
    found = re.findall(r"^/srv/yral-ai-chat/production/current/deploy/manage.sh (.*)$", books, re.MULTILINE)
    assert {"seed_personas", "doctor", "doctor --model"} <= set(found)
    return [command for command in found if command != "createsuperuser"]


def first_release(machine: Machine) -> str:
    """And the first question of its first user; the conversation's id."""
    machine.release("1.0.0")
    code, said = machine.deploy("1.0.0")
    assert code == 0, said
    assert said.splitlines()[-1] == "DEPLOYED: 1.0.0 runs and is well."
    for command in commands_of_the_handbooks():
        code, said = machine.manage(*command.split())
        assert code == 0, said
    persona = machine.server.call("GET", "/api/v1/influencers", user=None).json()["influencers"][0]["id"]
    conversation = machine.server.open(persona, "alice")
    assert machine.server.send(conversation, "Will you remember this?", "alice").status == 200
    return conversation


def one_that_is_ill(machine: Machine, conversation: str) -> None:
    ill = machine.release("1.1.0")
    (ill / "conversations/migrations/9999_later.py").write_text(COLUMN.format(after=newest_migration()))
    views = ill / "yral_chat/operations.py"
    views.write_text(views.read_text().replace("status=200 if healthy else 503", "status=503"))
    code, said = machine.deploy("1.1.0")
    assert code == 1, said
    assert "ROLLED BACK: 1.1.0 isn't well; 1.0.0 runs again." in said.splitlines()[-1]
    assert machine.version == "1.0.0"
    assert "later" in machine.columns(), "what it had migrated stays"
    assert machine.server.send(conversation, "And this as well?", "alice").status == 200
    stored = machine.server.rows("SELECT content FROM messages WHERE role = 'user' ORDER BY created_at")
    assert [text for (text,) in stored] == ["Will you remember this?", "And this as well?"]


def one_that_does_not_start(machine: Machine) -> None:
    (machine.root / "releases/1.1.0/yral_chat/entrypoint.py").write_text("raise SystemExit(1)\n")
    code, said = machine.deploy("1.1.0")
    assert code == 1, said
    assert "1.1.0 doesn't start." in said
    assert machine.version == "1.0.0"


def the_next_one(machine: Machine, conversation: str) -> None:
    machine.release("1.2.0")
    code, said = machine.deploy("1.2.0")
    assert code == 0, said
    assert machine.version == "1.2.0"
    history = machine.server.call("GET", f"/api/v1/chat/conversations/{conversation}/messages").json()["messages"]
    assert {"Will you remember this?", "And this as well?"} <= {one["content"] for one in history}


def the_jobs(machine: Machine) -> None:
    """Those of the timers, with the service's settings and secrets."""
    assert machine.systemctl("start", "yral-ai-chat-purge@production") == 0
    journal = (machine.folder / "journal-yral-ai-chat-purge@production").read_text()
    assert "Deleted 0 unused uploads and 0 files without a row." in journal
    assert machine.systemctl("start", "yral-ai-chat-analytics@production") == 0
    with closing(sqlite3.connect(machine.database.parent / "analytics/analytics.db")) as export:
        assert export.execute("SELECT count(*) FROM bi_user_conversation_summary").fetchone() == (1,)


def settings_that_cannot_work(machine: Machine) -> None:
    """They are found while the version before answers."""
    settings = machine.root / "settings.env"
    good = settings.read_text()
    settings.write_text(good + "JWT_LEEWAY=a while\n")
    code, said = machine.deploy("1.2.0")
    settings.write_text(good)
    assert code == 1
    assert "NOT DEPLOYED: 1.2.0 can't migrate the database or read its settings; what ran goes on." in said
    assert machine.version == "1.2.0"
