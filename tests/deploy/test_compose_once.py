"""deploy/compose.once.yaml, which migrates for deploy.sh, as the real Docker Compose understands it."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as configured

pytestmark = pytest.mark.own_database

DEPLOY = configured.BASE_DIR / "deploy"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found = importlib.util.find_spec("compose")
    if not (DEPLOY / "compose.yaml").exists() or found is None or found.origin is None:
        pytest.skip("There is no compose.yaml, or no Docker Compose to read it.")
    words = ["--profile", "once", "--file", "compose.yaml", "--file", "compose.once.yaml", "config"]
    run = subprocess.run(
        [str(Path(found.origin).with_name("docker-compose")), *words],
        cwd=DEPLOY,
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "JWT_SECRET_KEY": "one", "GEMINI_API_KEY": "two"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(yaml.safe_load(run.stdout)["services"])


@pytest.mark.parametrize("service", ["yral-ai-chat", "yral-ai-chat-staging"])
def test_it_has_all_of_the_service_but_its_address_and_its_door(services: dict[str, Any], service: str) -> None:
    once, own = services[f"{service}-once"], services[service]
    for same in ("image", "environment", "volumes", "secrets", "user", "read_only", "tmpfs", "cap_drop"):
        assert once[same] == own[same], same
    assert once["networks"] == {"front": {}}, "two containers can't have one address"
    assert own["networks"] != once["networks"]
    assert "ports" not in once
    assert once["entrypoint"] == ["python", "manage.py"]
    assert once["profiles"] == ["once"], "nobody starts it with the others"
