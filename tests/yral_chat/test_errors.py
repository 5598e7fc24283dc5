"""Whatever goes wrong, under any path and with any method: one shape, the right code, and nothing said too much."""

import io
import json
import logging
import re
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as configured
from django.db import connection
from django.test import Client

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import Api, token
from tests.fake_gemini import FakeGemini
from tests.yral_chat import crashing_urls
from yral_chat.log import LineFormatter

CHATS = "/api/v1/chat/conversations"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
SENT = "sent-9d1e-and-never-echoed"


def call(
    method: str, path: str, *, body: bytes | str = b"", content_type: str = "application/json", **headers: Any
) -> Any:
    """With alice's token unless `authorization` is given (None: without any)."""
    sent = {"authorization": f"Bearer {token()}", **headers}
    sent = {name: value for name, value in sent.items() if value is not None}
    client = Client(raise_request_exception=False)
    return client.generic(method, path, body, content_type=content_type, headers=sent)


def assert_error(response: Any, status: int, code: str) -> Any:
    """The one shape; its body."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    assert response["X-API-Version"] == "v1"
    assert response["X-Correlation-ID"]
    if response.request["REQUEST_METHOD"] == "HEAD":
        return None
    body = json.loads(response.content)
    assert list(body) == ["error", "message", "details"]
    assert body["error"] == code
    assert isinstance(body["message"], str)
    assert re.fullmatch(r".*\S.*", body["message"])
    assert isinstance(body["details"], dict)
    return body


def assert_invalid(response: Any, *where: str | int) -> Any:
    """A 422 whose first complaint points to `where`; the list of complaints."""
    body = assert_error(response, 422, "validation_error")
    complaints = body["details"]["errors"]
    assert complaints
    for complaint in complaints:
        assert set(complaint) == {"loc", "msg", "type"}
        assert all(isinstance(step, str | int) for step in complaint["loc"])
        assert complaint["msg"]
        assert isinstance(complaint["type"], str)
    if where:
        assert complaints[0]["loc"] == list(where)
    return complaints


# Unknown addresses and methods


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api",
        "/api/v1",
        "/api/v1/nothing",
        "/api/v2/influencers",
        "/api/v1/influencers/a/b",
        "/API/V1/INFLUENCERS",
        "/api/v1/chat/conversations/x/messages/y",
        "/wp-login.php",
        "/.env",
        "/x//y",
        "/%00",
        "/%ff%fe",
        "/nothing/%F0%9F%8C%B1",
        "/..%2f..%2fetc/passwd",
        "/static/nothing.css",
        "/" + "long" * 2000,
    ],
)
def test_an_unknown_address_is_not_found_with_any_method_and_no_token(method: str, path: str) -> None:
    assert_error(call(method, path, authorization=None), 404, "not_found")


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/json", ""])
def test_an_unknown_address_does_not_look_at_the_body(content_type: str) -> None:
    assert_error(call("POST", "/api/v1/nothing", body="{broken", content_type=content_type), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "/status/",
        "/docs/",
        "/openapi.json/",
        "/api/v1/influencers/",
        "/api/v1/influencers/x/",
        f"{CHATS}/",
        f"{CHATS}/x/",
        f"{CHATS}/x/messages/",
    ],
)
def test_a_slash_at_the_end_is_another_address_and_never_a_redirect(method: str, path: str) -> None:
    assert_error(call(method, path, body="{}"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", {"GET"}),
        ("/health", {"GET"}),
        ("/status", {"GET"}),
        ("/docs", {"GET"}),
        ("/redoc", {"GET"}),
        ("/openapi.json", {"GET"}),
        ("/openapi.yaml", {"GET"}),
        ("/api/v1/influencers", {"GET"}),
        ("/api/v1/influencers/x", {"GET"}),
        (CHATS, {"GET", "POST"}),
        (f"{CHATS}/x", {"DELETE"}),
        (f"{CHATS}/x/messages", {"GET", "POST"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(path: str, allowed: set[str]) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - allowed:
        response = call(method, path, body="{}")
        assert_error(response, 405, "method_not_allowed")
        named = {name.strip() for name in response["Allow"].split(",")}
        assert named - {"OPTIONS", "HEAD"} == allowed, (method, named)


@pytest.mark.parametrize("path", ["/", "/api/v1/influencers", "/api/v1/influencers/x", "/health", CHATS, f"{CHATS}/x"])
def test_a_post_is_never_redirected(path: str, db: None) -> None:
    for address in (path, path.rstrip("/") + "/", path + "//"):
        for authorization in (None, f"Bearer {token()}"):
            response = call("POST", address, body="{}", authorization=authorization)
            assert not 300 <= response.status_code < 400, address


# Malformed and wrong bodies


MALFORMED: dict[str, bytes] = {
    "cut": b'{"influencer_id": "' + SENT.encode(),
    "no JSON at all": SENT.encode(),
    "single quotes": b"{'influencer_id': 'x'}",
    "trailing comma": b'{"influencer_id": "x",}',
    "two documents": b'{"influencer_id": "x"} {"influencer_id": "y"}',
    "NaN": b'{"influencer_id": "x", "content": NaN}',
    "Infinity": b'{"influencer_id": "x", "content": Infinity}',
    "-Infinity": b'{"influencer_id": "x", "content": -Infinity}',
    "a lone surrogate": b'{"influencer_id": "\\ud800", "message_type": "text", "content": "\\ud800"}',
    "a lone low surrogate": b'{"influencer_id": "\\udc00x", "message_type": "text", "content": "x\\udfff"}',
    "a lone surrogate in a key": b'{"\\ud800": 1, "influencer_id": "x"}',
    "a lone surrogate in an ignored field": b'{"influencer_id": "x", "extra": "\\ud83c"}',
    "a surrogate in UTF-8": b'{"influencer_id": "\xed\xa0\x80"}',
    "bad UTF-8": b'{"influencer_id": "\xff\xfe"}',
    "Latin-1": '{"influencer_id": "é"}'.encode("latin-1"),
    "UTF-16": '{"influencer_id": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"influencer_id": "x"}',
    "a raw control character": b'{"influencer_id": "a\nb"}',
    "a NUL byte": b'{"influencer_id": "a\x00b"}',
    "deep lists": b'{"influencer_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep and cut": b"[" * 300_000,
    "a bad number": b'{"influencer_id": 01}',
    "hexadecimal": b'{"influencer_id": 0x1}',
    "a comment": b'{"influencer_id": "x"} // comment',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_a_bad_request(name: str, conversation: Conversation) -> None:
    for path in (CHATS, f"{CHATS}/{conversation.pk}/messages"):
        response = call("POST", path, body=MALFORMED[name])
        assert assert_error(response, 400, "bad_request")["details"] == {}
        assert SENT not in response.content.decode()
    assert Conversation.objects.count() == Message.objects.count() == 1


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/octet-stream",
        "application/jsonx",
        "application/json-patch+json",
        "nonsense",
        "/",
        "application/",
    ],
)
def test_another_content_type_is_unsupported(content_type: str, coach: Influencer) -> None:
    response = call("POST", CHATS, body=json.dumps({"influencer_id": coach.pk}), content_type=content_type)

    assert_error(response, 415, "unsupported_media_type")
    assert not Conversation.objects.exists()


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/json;"]
)
def test_json_is_json_however_it_is_spelt(content_type: str, coach: Influencer) -> None:
    response = call("POST", CHATS, body=json.dumps({"influencer_id": coach.pk}), content_type=content_type)

    assert response.status_code == 201, response.content


@pytest.mark.parametrize("body", [b"[]", b"[{}]", b'"text"', b"5", b"null", b"true", b"1.5", b"{}"])
def test_json_that_is_not_what_was_asked_for_is_invalid(body: bytes, conversation: Conversation) -> None:
    assert_invalid(call("POST", CHATS, body=body))
    assert_invalid(call("POST", f"{CHATS}/{conversation.pk}/messages", body=body))


def test_no_body_is_no_crash(conversation: Conversation) -> None:
    for path in (CHATS, f"{CHATS}/{conversation.pk}/messages"):
        for content_type in ("application/json", ""):
            assert call("POST", path, content_type=content_type).status_code in (400, 415, 422)


@pytest.mark.parametrize("extra", [b" ", b'"', b'{"influencer_id": "'])
def test_a_body_over_a_mebibyte_is_too_large(extra: bytes, conversation: Conversation) -> None:
    big = extra + b"x" * (configured.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)

    for path in (CHATS, f"{CHATS}/{conversation.pk}/messages"):
        assert_error(call("POST", path, body=big), 413, "payload_too_large")
    assert Conversation.objects.count() == Message.objects.count() == 1


def test_a_well_formed_body_over_a_mebibyte_is_too_large(conversation: Conversation, coach: Influencer) -> None:
    padding = "x" * (1024 * 1024 + 1)

    opened = call("POST", CHATS, body=json.dumps({"influencer_id": coach.pk, "extra": padding}))
    sent = call(
        "POST",
        f"{CHATS}/{conversation.pk}/messages",
        body=json.dumps({"message_type": "text", "content": "hi", "extra": padding}),
    )

    assert_error(opened, 413, "payload_too_large")
    assert_error(sent, 413, "payload_too_large")
    assert Message.objects.count() == 1


def test_a_body_of_just_under_a_mebibyte_is_read(coach: Influencer) -> None:
    body = json.dumps({"influencer_id": coach.pk, "extra": "x" * (1024 * 1024 - 200)})

    assert call("POST", CHATS, body=body).status_code == 201


# 422: says where, never what


TEXT = {"message_type": "text", "content": "x"}
DURATION = "audio_duration_seconds"
BAD_MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "message_type unknown": ({"message_type": SENT, "content": "x"}, "message_type"),
    "message_type missing": ({"content": SENT}, "message_type"),
    "message_type null": ({"message_type": None, "content": SENT}, "message_type"),
    "message_type a list": ({"message_type": [SENT], "content": "x"}, "message_type"),
    "message_type an object": ({"message_type": {SENT: SENT}, "content": "x"}, "message_type"),
    "image without media": ({"message_type": "image", "content": SENT}, "media_urls"),
    "multimodal without media": ({"message_type": "multimodal", "content": SENT, "media_urls": []}, "media_urls"),
    "audio without a sound": ({"message_type": "audio", "content": SENT, "media_urls": [SENT]}, "audio_url"),
    "content a list": ({"message_type": "text", "content": [SENT]}, "content"),
    "content an object": ({"message_type": "text", "content": {SENT: SENT}}, "content"),
    "content true": ({"message_type": "text", "content": True}, "content"),
    "content with NUL": ({"message_type": "text", "content": f"{SENT}\x00"}, "content"),
    "content too long": ({"message_type": "text", "content": SENT + "x" * 4000}, "content"),
    "content blank": ({"message_type": "text", "content": "  \n "}, "content"),
    "content null": ({"message_type": "text", "content": None, "extra": SENT}, "content"),
    "media an object": ({"message_type": "text", "content": "x", "media_urls": {SENT: SENT}}, "media_urls"),
    "media a number": ({"message_type": "text", "content": "x", "media_urls": 5}, "media_urls"),
    "media of objects": ({"message_type": "text", "content": "x", "media_urls": [{SENT: SENT}]}, "media_urls"),
    "media too many": ({"message_type": "text", "content": "x", "media_urls": [f"https://{SENT}"] * 11}, "media_urls"),
    "media empty": ({"message_type": "text", "content": "x", "media_urls": [""]}, "media_urls"),
    "audio a list": ({"message_type": "text", "content": "x", "audio_url": [SENT]}, "audio_url"),
    "duration a word": (TEXT | {DURATION: SENT}, DURATION),
    "duration negative": (TEXT | {DURATION: -98765}, DURATION),
    "duration too long": (TEXT | {DURATION: 98765}, DURATION),
    "duration a fraction": (TEXT | {DURATION: 1.98765}, DURATION),
    "duration true": (TEXT | {DURATION: True}, DURATION),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_an_invalid_message_says_where_and_echoes_nothing(
    name: str, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    body, field = BAD_MESSAGES[name]

    response = alice.post(f"{CHATS}/{conversation.pk}/messages", body)

    complaints = assert_invalid(response)
    assert complaints[0]["loc"][:2] == ["body", field]
    for secret in (SENT, "98765"):
        assert secret not in response.content.decode()
    assert Message.objects.count() == 1
    assert not gemini.requests


@pytest.mark.parametrize(
    "influencer_id",
    [None, True, [SENT], {SENT: SENT}, "", "   ", f"{SENT}\x00"],
    ids=["null", "true", "list", "object", "empty", "blank", "NUL"],
)
def test_an_invalid_influencer_id_says_where_and_echoes_nothing(alice: Api, influencer_id: Any) -> None:
    response = alice.post(CHATS, {"influencer_id": influencer_id, "extra": SENT})

    assert_invalid(response, "body", "influencer_id")
    assert SENT not in response.content.decode()


def test_a_missing_field_is_named(alice: Api) -> None:
    (complaint,) = assert_invalid(alice.post(CHATS, {}), "body", "influencer_id")

    assert complaint["type"] == "required"


@pytest.mark.parametrize(
    "query",
    [
        {"limit": SENT},
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "100000"},
        {"limit": ""},
        {"limit": "1.5"},
        {"limit": "1e1"},
        {"limit": " 5 "},
        {"limit": "٥"},
        {"limit": "9" * 5000},
        {"limit": "\x00"},
        {"limit": "null"},
        {"offset": SENT},
        {"offset": "-1"},
        {"offset": "9" * 5000},
        {"offset": "99999999999999999999"},
    ],
    ids=lambda query: str(query)[:40],
)
def test_a_page_out_of_range_says_where_and_is_never_clamped(
    alice: Api, conversation: Conversation, query: dict[str, str]
) -> None:
    for path in ("/api/v1/influencers", CHATS, f"{CHATS}/{conversation.pk}/messages"):
        response = alice.get(path, **query)
        assert_invalid(response, "query", next(iter(query)))
        assert SENT not in response.content.decode()


@pytest.mark.parametrize("order", [SENT, "", "DESC", "random", "asc,desc", "\x00"])
def test_an_unknown_order_says_where(alice: Api, conversation: Conversation, order: str) -> None:
    response = alice.messages(conversation, order=order)

    assert_invalid(response, "query", "order")
    assert SENT not in response.content.decode()


# Order of the checks


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer x.y.z"])
def test_the_token_is_looked_at_before_anything_else(authorization: str | None, conversation: Conversation) -> None:
    wrong = [
        call("POST", CHATS, body="{broken", authorization=authorization),
        call("POST", CHATS, body="{}", content_type="text/plain", authorization=authorization),
        call("POST", CHATS, body=b"x" * (2 * 1024 * 1024), authorization=authorization),
        call("POST", f"{CHATS}/{uuid4()}/messages", body="{}", authorization=authorization),
        call("POST", f"{CHATS}/no-uuid/messages", body="[]", authorization=authorization),
        call("GET", f"{CHATS}?limit=-5", authorization=authorization),
        call("GET", f"{CHATS}/{conversation.pk}/messages?order=x", authorization=authorization),
        call("DELETE", f"{CHATS}/{conversation.pk}", authorization=authorization),
        call("DELETE", f"{CHATS}/{uuid4()}", authorization=authorization),
    ]

    for response in wrong:
        assert_error(response, 401, "unauthorized")
    assert Conversation.objects.count() == 1


def test_the_body_and_query_are_looked_at_before_the_row(alice: Api, bob: Api, conversation: Conversation) -> None:
    for conversation_id in (uuid4(), "no-uuid", conversation.pk):
        path = f"{CHATS}/{conversation_id}/messages"
        assert_invalid(bob.post(path, {"message_type": "text"}), "body", "content")
        assert_invalid(bob.get(path, limit=0), "query", "limit")
        assert_invalid(bob.get(path, order="x"), "query", "order")
        assert_error(
            bob.client.post(path, "{", content_type="application/json", headers=bob.headers()), 400, "bad_request"
        )


def test_what_does_not_exist_is_not_found_and_what_is_not_yours_is_forbidden(
    bob: Api, conversation: Conversation
) -> None:
    for unknown in (uuid4(), "no-uuid", "0", "null", "%00", "a" * 3000, "१" * 32, conversation.pk.hex[:-1]):
        for response in (bob.send(unknown), bob.messages(unknown), bob.delete(f"{CHATS}/{unknown}")):
            assert_error(response, 404, "not_found")
    for response in (bob.send(conversation), bob.messages(conversation), bob.delete(f"{CHATS}/{conversation.pk}")):
        assert_error(response, 403, "forbidden")


# Leniency


def test_unknown_fields_and_explicit_nulls_are_accepted(alice: Api, coach: Influencer) -> None:
    opened = alice.post(CHATS, {"influencer_id": coach.pk, "metadata": None, "client": {"os": "iOS", "n": [1, None]}})
    assert opened.status_code == 201, opened.content

    sent = alice.send(
        opened.json()["id"],
        "Hi",
        media_urls=None,
        audio_url=None,
        audio_duration_seconds=None,
        client_message_id="7",
        idempotency_key=None,
        nested={"a": [None, {"b": 1}]},
    )
    assert sent.status_code == 200, sent.content


@pytest.mark.parametrize(
    "accept", ["application/xml", "text/html", "image/*", "text/plain;q=0.5", "nonsense", "", "application/json;v=9"]
)
def test_json_is_answered_whatever_is_accepted(accept: str, coach: Influencer, settings: Any) -> None:
    for path, status in ((CHATS, 200), ("/nothing", 404), (f"{CHATS}/x/messages", 404), (f"{CHATS}?limit=x", 422)):
        response = call("GET", path, accept=accept)
        assert response.status_code == status
        if accept != "text/html":
            assert response["Content-Type"] == "application/json", (path, accept)
            json.loads(response.content)


@pytest.mark.parametrize("query", ["format=xml", "format=api", "format=", "format=json", "_method=DELETE"])
def test_a_format_in_the_query_changes_nothing(query: str, db: None) -> None:
    response = call("GET", f"{CHATS}?{query}")

    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"


def test_a_method_cannot_be_overridden(conversation: Conversation) -> None:
    response = call("POST", CHATS, body="{}", x_http_method_override="DELETE")
    assert_invalid(response)
    response = call("POST", f"{CHATS}/{conversation.pk}", body="{}", **{"X-HTTP-Method-Override": "DELETE"})
    assert_error(response, 405, "method_not_allowed")
    assert Conversation.objects.count() == 1


# Headers


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/v1/influencers", CHATS, "/docs", "/health"])
@pytest.mark.parametrize("given", ["a", "6f1b-42", "A.b_c:d-9", "x" * 128, "8c7f0b5e-2c0a-4b8e-9a55-0d6b3e3f1a11"])
def test_a_sane_correlation_id_is_echoed(path: str, given: str, db: None) -> None:
    response = call("GET", path, x_correlation_id=given, **{"X-Correlation-ID": given})

    assert response["X-Correlation-ID"] == given


@pytest.mark.parametrize(
    "given", ["", " ", "x" * 129, "a b", "a\tb", "<script>", "a;b", "é", "a\nb", "a\r\nX-Evil: 1", "a\n", "%0d%0a", '"']
)
def test_any_other_correlation_id_is_replaced(given: str) -> None:
    first = Client().get("/nothing", headers={"X-Correlation-ID": given})["X-Correlation-ID"]
    second = Client().get("/nothing", headers={"X-Correlation-ID": given})["X-Correlation-ID"]

    assert re.fullmatch(r"[A-Za-z0-9._:-]{8,128}", first)
    assert first != second != given


def test_without_a_correlation_id_each_answer_has_its_own() -> None:
    assert len({Client().get("/nothing")["X-Correlation-ID"] for _ in range(5)}) == 5


@pytest.mark.parametrize("path", ["/crash", "/crash/plain", "/crash/400"])
def test_every_log_line_of_a_request_carries_its_correlation_id(path: str, settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.yral_chat.crashing_urls"
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LineFormatter("text"))
    logging.getLogger().addHandler(handler)
    try:
        call("GET", path, **{"X-Correlation-ID": "find-me-42"})
    finally:
        logging.getLogger().removeHandler(handler)

    lines = [line for line in written.getvalue().splitlines() if " yral_chat.requests " in line]
    assert lines
    assert [line for line in lines if "[find-me-42]" not in line] == []


# Crashes


@pytest.fixture
def crashing(settings: Any) -> str:
    settings.ROOT_URLCONF = "tests.yral_chat.crashing_urls"
    return crashing_urls.SECRET


@pytest.mark.parametrize("path", ["/crash", "/crash/plain"])
def test_a_crash_says_nothing_of_its_cause(path: str, crashing: str) -> None:
    response = call("GET", path)

    body = assert_error(response, 500, "internal_server_error")
    assert body["details"] == {}
    for hint in (crashing, "RuntimeError", "Traceback", ".py", "SELECT"):
        assert hint not in response.content.decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.django_db(transaction=True)
def test_a_crash_in_the_database_or_the_renderer_says_nothing_of_its_cause(method: str, crashing: str) -> None:
    response = call(method, "/crash", body="{}")

    assert_error(response, 500, "internal_server_error")
    for hint in (crashing, "no_such_table", "Error:", "object"):
        assert hint not in response.content.decode()


def test_with_debug_a_crash_says_its_cause(crashing: str, settings: Any) -> None:
    settings.DEBUG = True

    assert crashing in assert_error(call("GET", "/crash"), 500, "internal_server_error")["message"]


@pytest.mark.parametrize(("status", "code"), [(400, "bad_request"), (403, "forbidden"), (404, "not_found")])
def test_what_django_refuses_itself_has_the_shape(status: int, code: str, crashing: str) -> None:
    response = call("GET", f"/crash/{status}")

    assert_error(response, status, code)
    assert crashing not in response.content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_lost_table_is_a_crash_that_says_nothing(alice: Api, conversation: Conversation) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE messages RENAME TO messages_elsewhere")
    try:
        for response in (alice.send(conversation, SENT), alice.messages(conversation), alice.get(CHATS)):
            assert_error(response, 500, "internal_server_error")
            for hint in ("messages", "relation", "table", SENT):
                assert hint not in response.content.decode()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE messages_elsewhere RENAME TO messages")
    assert alice.send(conversation, "And now?").status_code == 200


def test_a_foreign_host_is_a_bad_request(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["api.example"]

    for path in ("/health", "/nothing", CHATS, "/api/v1/influencers"):
        response = call("GET", path, host=f"{SENT}.example")
        assert_error(response, 400, "bad_request")
        assert SENT not in response.content.decode()


@pytest.mark.parametrize("verb", ["post", "put", "patch", "delete"])
def test_the_api_asks_for_no_csrf_token(verb: str, coach: Influencer) -> None:
    client = Client(enforce_csrf_checks=True)
    response = getattr(client, verb)(CHATS, {"influencer_id": coach.pk}, content_type="application/json",
                                     headers={"Authorization": f"Bearer {token()}"})  # fmt: skip

    assert response.status_code == (201 if verb == "post" else 405)
