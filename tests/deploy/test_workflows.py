"""The workflows: every secret setting reaches the server, staging comes first, and the linters find nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as configured

from yral_chat.diagnosis import SECRET

pytestmark = pytest.mark.own_database

FOLDER = configured.BASE_DIR / ".github/workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
OF_SSH = {"SSH_HOST", "SSH_USER", "SSH_PRIVATE_KEY", "SSH_KNOWN_HOSTS"}
WITH_A_PASSWORD = {"DATABASE_URL", "CACHE_URL"}
OF_THE_JOBS = {"METABASE_API_KEY"}


def read(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def test_every_secret_setting_may_be_a_secret_and_all_else_a_variable() -> None:
    secret = {name for name in configured.VARIABLES if SECRET.search(name)} | WITH_A_PASSWORD
    step = read("deploy.yml")["jobs"]["staging"]["steps"][-1]
    given = {name for name, value in step["env"].items() if value == f"${{{{ secrets.{name} }}}}"}
    assert given == secret | OF_SSH | OF_THE_JOBS
    assert step["env"]["VARIABLES"] == "${{ toJSON(vars) }}"
    assert step["run"] == 'deploy/deliver.sh "$INSTANCE"'


def test_production_follows_staging_and_staging_follows_the_check() -> None:
    jobs = read("deploy.yml")["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/check.yml"
    assert (jobs["staging"]["needs"], jobs["production"]["needs"]) == ("check", "staging")
    assert jobs["staging"]["steps"] == jobs["production"]["steps"]
    for instance in ("staging", "production"):
        assert jobs[instance]["environment"] == jobs[instance]["env"]["INSTANCE"] == instance
        assert jobs[instance]["if"] == "vars.DEPLOY != '' && github.ref == 'refs/heads/main'"
    assert read("deploy.yml")["concurrency"] == {"group": "deploy", "cancel-in-progress": False}


def test_every_push_is_checked_once() -> None:
    assert read("check.yml")[True]["push"] == {"branches-ignore": ["main"]}
    assert read("deploy.yml")[True]["push"] == {"branches": ["main"]}
    assert read("check.yml")["jobs"]["check"]["steps"][-1]["run"] == ".ci/run"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_rights_are_few(workflow: Path) -> None:
    text = workflow.read_text()
    for used in re.findall(r"uses: (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", used) or used.startswith("./"), used
    made = yaml.safe_load(text)
    assert made["permissions"] == {}
    assert all(job["permissions"] == {"contents": "read"} for job in made["jobs"].values())
    assert "secrets." not in "".join(line for line in text.splitlines() if "run:" in line)


@pytest.mark.parametrize("command", ["jactionlint --strict-exit", "zizmor --offline --quiet .github"])
def test_the_linters_find_nothing_in_them_and_something_in_a_bad_one(command: str, tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    words = command.split()
    run = subprocess.run(words, cwd=configured.BASE_DIR, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    bad = tmp_path / ".github/workflows/bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
        "      - run: echo ${{ github.event.pull_request.title }} ${{ secret.X }}\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, check=False).returncode != 0
