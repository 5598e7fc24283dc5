"""The OpenAPI document is true: every address is in it, its requests work, and each error comes as its example says."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
from django.conf import settings as configured
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.utils import timezone

from conversations import turns
from conversations.examples import PICTURE, SOUND
from conversations.models import Conversation, Turn
from personas.models import Influencer
from tests.conftest import Api, token
from tests.conversations.media import picture, record, take
from tests.conversations.test_stream import as_in_a_running_service, parsed
from tests.fake_gemini import FakeGemini, blocks, fails, streams
from tests.yral_chat.test_house import patterns
from yral_chat.ai.offline import SCENES
from yral_chat.schema import EXAMPLES, HEADERS, LIMIT_HEADERS, key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.own_database]
__all__ = ["as_in_a_running_service"]  # a fixture
CHATS = "/api/v1/chat/conversations"
FOR_PAGES = ("try_token", "browse_login", "browse_logout")  # pages of development ask them, and no app can
NOBODY_S = str(uuid4())


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(json.loads(Client().get("/openapi.json").content))


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By their ids, with `path` and `method`."""
    return {
        operation["operationId"]: operation | {"path": path, "method": method}
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """And knows nothing that the schema doesn't."""
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)
    knows_no_more(document, schema, value)


def knows_no_more(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "answer") -> None:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for way in schema.get("oneOf", ()):
        if "$ref" in way and value is not None:
            knows_no_more(document, way, value, where)
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) <= set(schema["properties"]), where
        for name, inner in value.items():
            knows_no_more(document, schema["properties"][name], inner, f"{where}.{name}")
    if isinstance(value, list):
        for item in value:
            knows_no_more(document, schema.get("items", {}), item, f"{where}[]")


def shape(value: Any) -> Any:
    """Names and kinds, without what differs from one answer to the next."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


# Every address, and who may call it


def test_every_address_has_an_operation(document: dict[str, Any]) -> None:
    described = set(document["paths"])
    for route, pattern in patterns():
        if pattern.name not in ("unmatched", *FOR_PAGES) and not route.startswith("admin"):
            assert "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) in described


def test_operation_ids_and_summaries_are_there_and_differ(operations: dict[str, Any], document: dict[str, Any]) -> None:
    assert len(operations) == sum(len(item) for item in document["paths"].values())
    assert all(operation["summary"] for operation in operations.values())
    assert len({operation["summary"] for operation in operations.values()}) == len(operations)


def test_exactly_what_answers_401_asks_for_a_token(operations: dict[str, Any], coach: Influencer) -> None:
    for operation in operations.values():
        path = operation["path"].replace("{influencer_id}", coach.pk)
        answer = Client().generic(operation["method"].upper(), re.sub(r"\{\w+\}", NOBODY_S, path))
        assert (answer.status_code == 401) == bool(operation.get("security")), operation["operationId"]


def test_every_answer_tells_its_headers(operations: dict[str, Any]) -> None:
    for operation in operations.values():
        for status, response in operation["responses"].items():
            told = {name for name in response["headers"] if name in HEADERS}
            assert {"X-Correlation-ID", "X-API-Version"} <= told
            assert (set(LIMIT_HEADERS) <= told) == operation["path"].startswith("/api/"), (operation, status)


# Requests


@pytest.fixture
def prepared(alice: Api, coach: Influencer, conversation: Conversation, media_folder: Any) -> dict[str, str]:
    """What the examples' names and ids stand for here."""
    keys = {PICTURE: take(alice, "red")[0], SOUND: record(alice)}
    return {**keys, "persona": coach.pk, "conversation": str(conversation.pk)}


def filled(value: Any, prepared: dict[str, str]) -> Any:
    text = json.dumps(value)
    for name in (PICTURE, SOUND):
        text = text.replace(name, prepared[name])
    body = json.loads(text)
    if "influencer_id" in body:
        body["influencer_id"] = prepared["persona"]
    return body


def requests_of(operation: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, example in content.get("examples", {}).items():
            yield name, example["value"]


@pytest.mark.parametrize("operation_id", ["createConversation", "sendMessage", "streamMessage"])
def test_every_example_of_a_request_is_answered_as_documented(
    alice: Api, operations: dict[str, Any], document: dict[str, Any], prepared: dict[str, str], operation_id: str
) -> None:
    operation, tried = operations[operation_id], 0
    for _, value in requests_of(operation):
        path = operation["path"].format(conversation_id=prepared["conversation"])
        body = filled(value, prepared)
        fits(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
        answer = alice.post(path, body)
        response = operation["responses"][str(answer.status_code)]
        assert answer.status_code < 300
        if operation_id == "streamMessage":
            last = parsed(answer.getvalue().decode(), answer["X-Message-ID"])[-1]
            fits_event(document, last.event, last.data)
        else:
            fits(document, response["content"]["application/json"]["schema"], answer.json())
        assert set(response["headers"]) <= set(answer.headers), set(response["headers"]) - set(answer.headers)
        tried += 1
    assert tried >= 1


def fits_event(document: dict[str, Any], event: str, data: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{event.capitalize()}Event"}
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(data)


# Answers


def responses_of(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str, Any]]:
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                if "value" in example:
                    yield status, media_type, content["schema"], name, example["value"]


def test_every_example_of_an_answer_fits_its_schema(operations: dict[str, Any], document: dict[str, Any]) -> None:
    seen = set()
    for operation in operations.values():
        for status, media_type, schema, _, value in responses_of(operation):
            if media_type == "application/json":
                fits(document, schema, value)
                seen.add((operation["operationId"], status))
            else:
                question = re.findall(r"id: ([0-9a-f-]{36})/", value)[0]
                for one in parsed(value, question):
                    fits_event(document, one.event, one.data)
    assert len(seen) >= 10
    for operation in operations.values():
        if operation["path"].startswith("/api/"):
            good = min(operation["responses"])
            assert any(found[0] == good for found in responses_of(operation)), operation["operationId"]


def test_the_examples_of_answers_have_the_shape_of_real_ones(
    alice: Api,
    operations: dict[str, Any],
    document: dict[str, Any],
    prepared: dict[str, str],
    coach: Influencer,
    gemini: FakeGemini,
) -> None:
    chat = prepared["conversation"]

    def example(operation_id: str, name: str) -> Any:
        return next(found[4] for found in responses_of(operations[operation_id]) if found[3] == key(name))

    def same(answer: Any, operation_id: str, name: str) -> None:
        assert shape(answer.json()) == shape(example(operation_id, name)), f"{operation_id} {name}"
        response = operations[operation_id]["responses"][str(answer.status_code)]
        fits(document, response["content"]["application/json"]["schema"], answer.json())

    coach.avatar_url = "/static/personas/coach_asha.svg"
    coach.save()
    same(alice.get("/api/v1/influencers"), "listInfluencers", "personas")
    same(alice.get(f"/api/v1/influencers/{coach.pk}"), "getInfluencer", "persona")
    same(alice.post(CHATS, {"influencer_id": coach.pk}), "createConversation", "opened")
    same(alice.get(CHATS), "listConversations", "conversations")
    answer = alice.send(chat, "What should I eat today?")
    same(answer, "sendMessage", "answer")
    same(alice.messages(chat), "listMessages", "messages")
    question = answer.json()["user_message"]["id"]
    same(alice.post(f"{CHATS}/{chat}/messages/{question}/regenerate", None), "regenerateAnswer", "answer")
    stopped = alice.post(f"{CHATS}/{chat}/messages/{question}/stop", None)
    same(stopped, "stopTurn", "stopped")
    about = {"message_type": "multimodal", "media_urls": [prepared[PICTURE]]}
    same(alice.send(chat, "What is on my plate?", **about), "sendMessage", "about_a_picture")
    voice = {"message_type": "audio", "audio_url": prepared[SOUND], "audio_duration_seconds": 2}
    same(alice.post(f"{CHATS}/{chat}/messages", voice), "sendMessage", "to_a_voice_note")
    gemini.will(blocks())
    same(alice.send(chat, "Blocked?"), "sendMessage", "blocked")
    same(uploaded(alice), "uploadMedia", "picture")
    same(alice.delete(f"{CHATS}/{chat}"), "deleteConversation", "deleted")


def uploaded(api: Api, data: bytes | None = None) -> Any:
    fields = {"file": SimpleUploadedFile("file", picture() if data is None else data), "type": "image"}
    return api.client.post("/api/v1/media/upload", fields, headers=api.headers())


@pytest.mark.parametrize("scene", SCENES)
def test_the_simulator_s_transcripts_are_what_it_plays(
    alice: Api, conversation: Conversation, operations: dict[str, Any], settings: Any, scene: str
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 2
    told = next(f[4] for f in responses_of(operations["streamMessage"]) if f[3] == key(f"scene_{scene}"))
    body = {"message_type": "text", "content": "What should I eat today?"}
    headers = {**alice.headers(), "X-Chat-Scenario": scene}

    answer = alice.client.post(
        f"{CHATS}/{conversation.pk}/messages/stream", body, content_type="application/json", headers=headers
    )

    played = parsed(answer.getvalue().decode(), answer["X-Message-ID"])
    expected = parsed(told, re.findall(r"id: ([0-9a-f-]{36})/", told)[0])
    assert {one.event for one in played} == {one.event for one in expected}
    assert shape(played[-1].data) == shape(expected[-1].data)
    if played[-1].event == "error":
        assert played[-1].data == expected[-1].data
    elif SCENES[scene].text:
        said, shown = (end.data["assistant_message"]["content"] for end in (played[-1], expected[-1]))
        assert said.startswith(shown.removesuffix("…"))


# Errors: each as its example says


@pytest.fixture
def chat(conversation: Conversation) -> str:
    return f"{CHATS}/{conversation.pk}"


Provoke = Callable[..., Any]


def with_header(value: str, client: Client | None = None) -> Any:
    return (client or Client()).get(CHATS, headers={"Authorization": value})


def raw(api: Api, path: str, body: bytes, content_type: str = "application/json") -> Any:
    return api.client.generic("POST", path, body, content_type, headers=api.headers())


def stored(api: Api) -> str:
    """The link of an upload, without its host."""
    return "/media/" + str(uploaded(api).json()["url"]).split("/media/")[1]


def keyed(api: Api, chat: str, content: str) -> Any:
    body = {"message_type": "text", "content": content}
    headers = {**api.headers(), "Idempotency-Key": "k"}
    return api.client.post(f"{chat}/messages", body, content_type="application/json", headers=headers)


def twice_with_one_key(api: Api, chat: str, **_: Any) -> Any:
    keyed(api, chat, "one")
    return keyed(api, chat, "two")


def while_another_runs(api: Api, chat: str, settings: Any, **_: Any) -> Any:
    settings.GEMINI_TIMEOUT_SECONDS = 1.2
    running = Conversation.objects.get()
    running.running_question, running.running_token = uuid4(), uuid4()
    running.running_until = timezone.now() + turns.LEASE
    running.save()
    return api.send(running, "Now me")


def stopped_meanwhile(api: Api, chat: str, gemini: FakeGemini, **_: Any) -> Any:
    def stop(asked: Any) -> Any:
        question = Turn.objects.get().pk
        assert Client().post(f"{chat}/messages/{question}/stop", headers=api.headers()).status_code == 200
        connection.close()  # this thread's
        return streams("Too late")

    gemini.chooses = stop
    return api.send(Conversation.objects.get(), "Never mind")


def replace_the_first(api: Api, chat: str, **_: Any) -> Any:
    first = api.send(Conversation.objects.get(), "one").json()["user_message"]["id"]
    api.send(Conversation.objects.get(), "two")
    return api.post(f"{chat}/messages/{first}/regenerate", None)


def regenerate_while_away(api: Api, chat: str, **_: Any) -> Any:
    question = api.send(Conversation.objects.get(), "one").json()["user_message"]["id"]
    Influencer.objects.update(paused_at=timezone.now())
    return api.post(f"{chat}/messages/{question}/regenerate", None)


def unknown_scene(api: Api, chat: str, **_: Any) -> Any:
    body = {"message_type": "text", "content": "Hello!"}
    headers = {**api.headers(), "X-Chat-Scenario": "earthquake"}
    return api.client.post(f"{chat}/messages", body, content_type="application/json", headers=headers)


def wrong_event(api: Api, chat: str, **_: Any) -> Any:
    question = api.send(Conversation.objects.get(), "one").json()["user_message"]["id"]
    headers = {**api.headers(), "Last-Event-ID": f"{uuid4()}/1"}
    return api.client.get(f"{chat}/messages/{question}/stream", headers=headers)


def over_the_limit(name: str) -> Provoke:
    def provoke(api: Api, chat: str, settings: Any, time_machine: Any, **_: Any) -> Any:
        moments = {"hour": "2026-01-31T09:30:00Z"}
        time_machine.move_to(moments.get(name, "2026-01-31T09:00:18Z"), tick=False)
        settings.RATE_LIMIT_PER_MINUTE = 1 if name == "minute" else 1000
        settings.RATE_LIMIT_PER_HOUR = 1 if name == "hour" else 10_000
        settings.RATE_LIMIT_MODEL_PER_MINUTE = settings.RATE_LIMIT_UPLOAD_PER_MINUTE = 1
        one_more = Api(f"hasty-{uuid4()}")  # counted apart
        calls: dict[str, Provoke] = {
            "model_minute": lambda: one_more.post(f"{chat}/messages", {}),
            "upload_minute": lambda: uploaded(one_more),
        }
        call: Provoke = calls.get(name, lambda: one_more.get(CHATS))
        call()
        return call()

    return provoke


def fault(api: Api, chat: str, **_: Any) -> Any:
    body = {"message_type": "text", "content": "Hello!"}
    headers = {**api.headers(), "X-Chat-Scenario": "crash"}
    return api.client.post(f"{chat}/messages", body, content_type="application/json", headers=headers)


def model_down(api: Api, gemini: FakeGemini, **_: Any) -> Any:
    gemini.default = fails(403)
    return api.send(Conversation.objects.get(), "Are you there?")


def storage_down(api: Api, settings: Any, tmp_path: Any, **_: Any) -> Any:
    (tmp_path / "a file").touch()
    settings.MEDIA_UPLOAD_DIR = tmp_path / "a file" / "uploads"
    settings.STORAGES = dict(settings.STORAGES)
    return uploaded(api)


def keys_unknown(api: Api, settings: Any, **_: Any) -> Any:
    settings.JWT_ALGORITHM, settings.JWT_JWKS_URL = "RS256", "http://127.0.0.1:9/keys"
    return api.get(CHATS)


def sends(**body: Any) -> Provoke:
    return lambda api, chat, **_: api.post(f"{chat}/messages", body)


TEXT = {"message_type": "text", "content": "Hello!"}
PROVOKED: dict[str, Provoke] = {
    "malformed_json": lambda api, chat, **_: raw(api, f"{chat}/messages", b"{"),
    "wrong_format": lambda api, **_: uploaded(api, b"no picture"),
    "no_token": lambda **_: Client().get(CHATS),
    "malformed_header": lambda **_: with_header("Basic YWxpY2U6c2VjcmV0"),
    "invalid_token": lambda **_: with_header("Bearer nonsense"),
    "expired_token": lambda **_: with_header(f"Bearer {token(exp=1)}"),
    "wrong_issuer": lambda **_: with_header(f"Bearer {token(iss='https://elsewhere.example')}"),
    "no_subject": lambda **_: with_header(f"Bearer {token(sub=None)}"),
    "not_yours": lambda chat, bob, **_: bob.get(f"{chat}/messages"),
    "not_your_upload": lambda api, chat, bob, **_: api.post(
        f"{chat}/messages", {"message_type": "image", "media_urls": take(bob, "red")}
    ),
    "bad_link": lambda api, **_: Client().get(stored(api).partition("?")[0]),
    "no_influencer": lambda api, **_: api.get(f"/api/v1/influencers/{NOBODY_S}"),
    "no_conversation": lambda api, **_: api.get(f"{CHATS}/{NOBODY_S}/messages"),
    "no_message": lambda api, chat, **_: api.get(f"{chat}/messages/{NOBODY_S}/stream"),
    "no_file": lambda **_: Client().get("/media/no.key"),
    "idempotency_mismatch": twice_with_one_key,
    "turn_in_progress": while_another_runs,
    "stopped": stopped_meanwhile,
    "not_the_last_message": replace_the_first,
    "away": regenerate_while_away,
    "too_large": lambda api, chat, **_: raw(api, f"{chat}/messages", b" " * (3 << 20)),
    "file_too_large": lambda api, **_: uploaded(api, b"\x89PNG\r\n\x1a\n" + bytes(11 << 20)),
    "wrong_type": lambda api, chat, **_: raw(api, f"{chat}/messages", b"content=Hi", "text/plain"),
    "bad_range": lambda api, **_: Client().get(stored(api), headers={"Range": "bytes=999999-"}),
    "limit_out_of_range": lambda api, **_: api.get(CHATS, limit=0),
    "wrong_order": lambda api, chat, **_: api.get(f"{chat}/messages", order="up"),
    "no_influencer_id": lambda api, **_: api.post(CHATS, {}),
    "no_content": sends(message_type="text"),
    "unknown_message_type": sends(message_type="video", content="Hello!"),
    "no_upload_file": lambda api, **_: api.client.post(
        "/api/v1/media/upload", {"type": "image"}, headers=api.headers()
    ),
    "unknown_scene": unknown_scene,
    "wrong_event": wrong_event,
    **{name: over_the_limit(name) for name in ("minute", "hour", "model_minute", "upload_minute")},
    "fault": fault,
    "model_down": model_down,
    "storage_down": storage_down,
    "keys_unknown": keys_unknown,
}


def test_every_error_is_provoked() -> None:
    assert set(PROVOKED) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_comes_as_its_example_says(
    request: pytest.FixtureRequest, alice: Api, bob: Api, chat: str, media_folder: Any, settings: Any, name: str
) -> None:
    fixtures = {one: request.getfixturevalue(one) for one in ("gemini", "tmp_path", "time_machine")}

    answer = PROVOKED[name](api=alice, bob=bob, chat=chat, settings=settings, **fixtures)

    said = answer.json()
    said["details"] |= {"message_id": EXAMPLES[name].details["message_id"]} if "message_id" in said["details"] else {}
    assert (answer.status_code, said) == (EXAMPLES[name].status, EXAMPLES[name].body)


def test_what_nginx_answers_in_the_service_s_place_has_codes_of_the_document(document: dict[str, Any]) -> None:
    template = (configured.BASE_DIR / "deploy/nginx/templates/yral_chat.conf.template").read_text()
    for field, schema in (("error", "ErrorCode"), ("limit_type", "LimitType")):
        said = set(re.findall(rf'"{field}":"(\w+)"', template))
        assert said, field
        assert said <= set(document["components"]["schemas"][schema]["enum"])


def test_every_error_stands_at_some_operation(operations: dict[str, Any]) -> None:
    told = {
        name
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if status >= "400"
        for content in response["content"].values()
        for name in content.get("examples", ())
    }
    assert {key(name) for name in EXAMPLES} <= told
