"""The documents for operators: nothing lacks in them, and their commands can be read."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings as configured

from tests.servers import environment, python
from yral_chat.diagnosis import CHECKS, SECRET

pytestmark = pytest.mark.own_database

ROOT: Path = configured.BASE_DIR
RUNBOOK = (ROOT / "docs/operations/runbook.md").read_text()
DEPLOYING = (ROOT / "docs/operations/deploying.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """A section's table, by its first column."""
    section = RUNBOOK.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells[2:]}


def test_the_runbook_has_every_alert_and_says_which_ones_page() -> None:
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    alerts = dict(re.findall(r"- alert: (\w+)(?:.*\n)+?\s+severity: (\w+)", rules))
    described = {re.findall(r"`(\w+)`", name)[0]: name.startswith("**!**") for name in rows("Alerts")}
    assert described == {name: severity == "page" for name, severity in alerts.items()}
    assert len(alerts) > 15


def test_the_runbook_has_every_check_of_the_doctor() -> None:
    assert rows("What `doctor` finds").keys() == {*CHECKS, "Model's answer"}


def test_every_symptom_has_a_meaning_and_something_to_do() -> None:
    for heading in ("Users see", "A start or a deployment fails", "Alerts", "What `doctor` finds"):
        table = rows(heading)
        assert table
        assert all(len(row) == 2 and all(row) for row in table.values()), heading


def test_every_operator_s_document_is_linked_by_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for book in (ROOT / "docs/operations").glob("*.md"):
        assert f"(docs/operations/{book.name})" in readme


def test_every_secret_of_the_workflow_is_named() -> None:
    workflow = (ROOT / ".github/workflows/deploy.yml").read_text()
    wanted = set(re.findall(r"secrets\.(\w+)", workflow))
    assert {name for name in configured.VARIABLES if SECRET.search(name)} <= wanted
    assert wanted <= set(re.findall(r"`([A-Z_]+)`", DEPLOYING.partition("## 6.")[2]))


def commands(book: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", book, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["deploying", "upgrading", "backups", "runbook", "restore"])
def test_a_shell_understands_their_commands(name: str, tmp_path: Path) -> None:
    book = (ROOT / f"docs/operations/{name}.md").read_text()
    assert commands(book)
    script = tmp_path / "commands.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(commands(book)))
    shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "--exclude=SC2155,SC2164", str(script)]
    run = subprocess.run(shellcheck, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_what_their_commands_use_is_in_the_repository() -> None:
    for book in (ROOT / "docs/operations").glob("*.md"):
        for block in commands(book.read_text()):
            for file in re.findall(r"(?:^|/(?:current|previous)/|[ ])(deploy/[\w.-]+/?)", block, re.MULTILINE):
                assert (ROOT / file).exists(), f"{book.name}: {file}"
            for unit in re.findall(r"(yral-ai-chat[\w-]*@)production(\.timer)?", block):
                assert (ROOT / "deploy/systemd" / f"{unit[0]}{unit[1] or '.service'}").exists(), unit


def first_settings() -> list[tuple[dict[str, str], str]]:
    """Each VARIABLES of the first deployment, and the settings.env that deliver.sh makes of it."""
    script = str(ROOT / "deploy/settings_file.py")
    made = []
    for text in re.findall(r"VARIABLES='(\{.*?\})'", DEPLOYING, re.DOTALL):
        env = {"PATH": "/usr/bin:/bin", "VARIABLES": text}
        run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
        assert run.stderr == "", "each is a setting"
        made.append((json.loads(text), run.stdout))
    return made


def test_with_the_first_settings_staging_and_production_stand_where_nginx_looks_for_them(tmp_path: Path) -> None:
    of_compose, *of_systemd = first_settings()
    assert of_compose[0].keys() >= {"SERVER_NAME", "CERTBOT_EMAIL", "STAFF_NETWORKS"}
    nginx = (ROOT / "deploy/nginx/templates/yral_chat.conf.template").read_text()
    upstreams = (ROOT / "deploy/nginx/15-yral-chat.envsh").read_text()
    for instance, (asked, text) in zip(("staging", "production"), of_systemd, strict=True):
        (file := tmp_path / f"{instance}.env").write_text(text)
        env = environment(tmp_path, "http://127.0.0.1:9", 9, DJANGO_SETTINGS_MODULE="yral_chat.settings")
        env = {name: value for name, value in env.items() if name not in asked.keys() | {"ALLOWED_HOSTS"}}
        env |= {"ENV_FILE": str(file), "ENVIRONMENT": instance}
        ask = "from django.conf import settings as s; print(s.HOST, s.PORT, s.MEDIA_X_ACCEL_PREFIX, *s.ALLOWED_HOSTS)"
        host, port, prefix, *names = python(env, "-c", ask).stdout.split()
        assert (host, "chat.example" in names) == ("127.0.0.1", True), "none goes round nginx"
        assert f"_UPSTREAM:-127.0.0.1:{port}}}" in upstreams
        assert f"location {prefix}/ {{" in nginx
        assert asked["MEDIA_BASE_URL"] == f"https://chat.example{asked.get('SCRIPT_NAME', '')}/media"


def test_the_user_who_deploys_may_start_and_stop_and_nothing_else(tmp_path: Path) -> None:
    """The lines for sudo are understood by it, and are those that deploy.sh needs."""
    (rules,) = re.findall(r"<<'END'\n(.*?)^END$", DEPLOYING, re.MULTILINE | re.DOTALL)
    allowed = [re.split(r": /usr/bin/(\w+) ", line)[1:] for line in rules.splitlines()]
    script = (ROOT / "deploy/deploy.sh").read_text()
    used = re.findall(r"as_root (systemctl|journalctl) (.*?)(?: \|\|.*)?;?(?: \})?$", script, re.MULTILINE)
    assert len(used) >= 5
    for program, words in used:
        call = words.replace('"$unit"', "yral-ai-chat@staging").replace('"', "").replace("$instance", "staging").strip()
        assert any(one == program and re.search(pattern, call) for one, pattern in allowed), call
    assert not any(re.search(pattern, "stop ssh") for _, pattern in allowed)
    if shutil.which("visudo"):
        (tmp_path / "rules").write_text(rules)
        subprocess.run(["visudo", "--check", "--file", str(tmp_path / "rules")], check=True, capture_output=True)
