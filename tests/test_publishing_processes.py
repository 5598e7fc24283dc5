"""A published change is obeyed by every process on the next turn: real servers, each with processes of its own."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fake_gemini import FakeGemini
from tests.servers import environment, free_port, manage, running

pytestmark = [pytest.mark.own_database, pytest.mark.drill]
SAVE = "versions.save_draft(influencer_id=persona, content={'system_instructions': 'Published just now.'})"
PAUSE = "operating.operate(influencer_id=persona, values={'paused_at': timezone.now(), 'away_message': 'Back at six!'})"
PUBLISH = "versions.publish(influencer_id=persona, change_note='Because.')"


def test_every_process_obeys_what_was_published_and_a_pause_on_the_next_turn(
    gemini: FakeGemini, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        environments = [environment(tmp_path, gemini.url, free_port(), WEB_CONCURRENCY="1") for _ in range(2)]
        manage(environments[0], "migrate", "--verbosity", "0")
        manage(environments[0], "seed_personas")
        servers = []
        for number, env in enumerate(environments):
            folder = tmp_path / str(number)
            folder.mkdir()
            servers.append(stack.enter_context(running("gunicorn", env, folder)))
        persona = servers[0].influencers[0]
        talks = [server.open(persona, f"user-{number}") for number, server in enumerate(servers)]

        def told() -> list[str]:
            heard = []
            for number, (server, talk) in enumerate(zip(servers, talks, strict=True)):
                assert server.send(talk, "Hello", f"user-{number}").status == 200
                heard.append(gemini.last.system.partition("\n")[0])
            return heard

        before = told()
        code = f"from personas import versions\npersona = {persona!r}\n"
        manage(environments[0], "shell", "--verbosity", "0", "-c", code + SAVE)
        assert told() == before
        manage(environments[0], "shell", "--verbosity", "0", "-c", code + PUBLISH)
        assert told() == ["Published just now."] * 2

        code = f"from django.utils import timezone\nfrom personas import operating\npersona = {persona!r}\n"
        manage(environments[0], "shell", "--verbosity", "0", "-c", code + PAUSE)
        for number, (server, talk) in enumerate(zip(servers, talks, strict=True)):
            turn = server.send(talk, "Hello?", f"user-{number}").json()
            assert (turn["away"], turn["assistant_message"]["content"]) == (True, "Back at six!")

        said = servers[0].rows("SELECT persona_version FROM messages WHERE role = 'assistant' ORDER BY created_at")
        assert [number for (number,) in said] == [1] * 6 + [2] * 4
