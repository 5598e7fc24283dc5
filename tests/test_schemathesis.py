"""schemathesis against the running service: whatever the OpenAPI document allows or forbids, every answer conforms to
it, and none is a fault."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import token
from tests.fake_gemini import FakeGemini
from tests.servers import Server, environment, free_port, manage, running

pytestmark = [pytest.mark.own_database, pytest.mark.drill]
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
CONFIGURATION = """
color = false

[parameters]
"header.X-Chat-Scenario" = "emoji"

[[operations]]
include-operation-id = ["listMessages", "sendMessage", "streamMessage", "followTurn", "stopTurn", "regenerateAnswer"]
parameters = {{ "path.conversation_id" = "{conversation}", "path.question_id" = "{question}" }}

# Opening a conversation that is there creates none, and another run of the operations may have deleted it.
[checks]
ensure_resource_availability.enabled = false

# What the bytes are, whose event it is, and which answer is the last one, no schema can say.
[[operations]]
include-operation-id = ["uploadMedia", "followTurn"]
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gemini_server: FakeGemini) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("schemathesis")
    env = environment(folder, gemini_server.url, free_port(), ENVIRONMENT="staging", MEDIA_UPLOAD_DIR=f"{folder}/files")
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    with running("gunicorn", env, folder) as server:
        yield server


def test_every_answer_conforms(server: Server, tmp_path: Path) -> None:
    conversation = server.open(server.influencers[0], "alice")
    question = server.send(conversation, "What should I eat today?", "alice").json()["user_message"]["id"]
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(conversation=conversation, question=question))

    arguments = ["--config-file", str(configuration), "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    options = ["-H", f"Authorization: Bearer {token()}", "--seed", "1", "-n", "10", "--continue-on-failure"]
    run = subprocess.run(
        [SCHEMATHESIS, *arguments, *options],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    tried = re.search(r"(\d+) generated", run.stdout)
    assert tried
    assert int(tried[1]) > 500
    assert not server.trouble
