"""Anything in any body, query and id of any route: never a 5xx, and always the one error shape."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import CANARY, token

FUZZ = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NASTY_TEXTS = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "x\udfffy",
    "\ufeff",
    "\u202e",
    "٣",
    "१" * 32,
    "🌱" * 50,
    "é" * 4001,
    "x" * 4000,
    "x" * 4001,
    "x" * 100_000,
    "{}",
    "%00",
    "%s%n",
    "{0.__class__}",
    "' OR 1=1 --",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "1e309",
    "NaN",
    "null",
    "true",
    "-0",
    "00000000-0000-0000-0000-000000000000",
    "{00000000-0000-0000-0000-000000000000}",
    "urn:uuid:00000000000000000000000000000000",
    "text",
    "TEXT",
    "ſ",
    "İmage",
    "image",
    "https://[::1",
    "https://x.example/\x00",
    "https://" + "x" * 3000,
]
texts = st.one_of(
    st.sampled_from(NASTY_TEXTS),
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Cn"]), max_size=5),
)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 300, 301, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400]),
    st.floats(),
    st.sampled_from([-0.0, 1e308, -1e308, 5e-324, 0.1, 300.0, 3.5]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
deep = st.sampled_from(
    [json.loads("[" * n + "]" * n) for n in (50, 900)] + [json.loads('{"a":' * 900 + "1" + "}" * 900)]
)
values = st.one_of(
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=8,
    ),
    deep,
    st.lists(texts, min_size=9, max_size=12),
)

SEND = ("message_type", "content", "media_urls", "audio_url", "audio_duration_seconds", "blocked", "metadata")
OPEN = ("influencer_id", "user_id", "metadata")


def one_wrong(names: tuple[str, ...], good: dict[str, Any]) -> Any:
    """A good body with one to three fields replaced by anything: deeper in than a body that is all wrong."""
    return st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3).map(
        lambda changed: {**good, **changed}
    )


def as_json(value: Any) -> bytes:
    """With NaN, with lone surrogates as escapes, and with integers of any length."""
    return json.dumps(value).encode()


def assert_sound(response: Any) -> None:
    assert response.status_code < 500, (response.request, response.content[:500])
    assert not 300 <= response.status_code < 400
    if response.status_code >= 400:
        body = json.loads(response.content)
        assert set(body) == {"error", "message", "details"}
        assert isinstance(body["details"], dict)
        for complaint in body["details"].get("errors", ()):
            assert set(complaint) == {"loc", "msg", "type"}
        assert response["Content-Type"] == "application/json"
    assert CANARY.encode() not in response.content
    assert response["X-Correlation-ID"]


def call(method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    client = Client(raise_request_exception=False)
    sent = {"Authorization": f"Bearer {token()}", **headers}
    return client.generic(method, path, body, content_type="application/json", headers=sent)


def counted(conversation: Conversation) -> bool:
    """What the counter says is what is there."""
    conversation.refresh_from_db()
    return conversation.message_count == Message.objects.of(conversation.pk).count()


@FUZZ
@given(body=one_wrong(SEND, {"message_type": "text", "content": "Hello"}))
def test_a_message_may_be_anything(conversation: Conversation, body: Any) -> None:
    assert_sound(call("POST", f"/api/v1/chat/conversations/{conversation.pk}/messages", as_json(body)))
    assert counted(conversation)


@FUZZ
@given(body=one_wrong(OPEN, {"influencer_id": "x"}))
def test_what_opens_a_conversation_may_be_anything(coach: Influencer, body: Any) -> None:
    assert_sound(call("POST", "/api/v1/chat/conversations", as_json(body)))


@FUZZ
@given(body=st.one_of(values.map(as_json), st.binary(max_size=200)))
def test_a_body_may_be_no_object_and_no_json(conversation: Conversation, body: bytes) -> None:
    for path in ("/api/v1/chat/conversations", f"/api/v1/chat/conversations/{conversation.pk}/messages"):
        assert_sound(call("POST", path, body))


@FUZZ
@given(
    query=st.dictionaries(
        st.one_of(st.sampled_from(["limit", "offset", "order", "influencer_id", "format"]), st.text(max_size=5)),
        st.one_of(st.sampled_from(NASTY_TEXTS), st.integers().map(str), st.text(max_size=20), st.just(str(10**500))),
        max_size=3,
    )
)
def test_a_query_may_be_anything(conversation: Conversation, query: dict[str, str]) -> None:
    encoded = urlencode(query, errors="surrogatepass")
    for path in ("influencers", "chat/conversations", f"chat/conversations/{conversation.pk}/messages"):
        assert_sound(call("GET", f"/api/v1/{path}?{encoded}"))


@FUZZ
@given(id=st.one_of(st.sampled_from([text for text in NASTY_TEXTS if text]), st.text(min_size=1, max_size=40)))
def test_an_id_may_be_anything(conversation: Conversation, id: str) -> None:
    escaped = quote(id, safe="", errors="surrogatepass")
    message = as_json({"message_type": "text", "content": "x"})
    assert_sound(call("GET", f"/api/v1/influencers/{escaped}"))
    assert_sound(call("GET", f"/api/v1/chat/conversations/{escaped}/messages"))
    assert_sound(call("POST", f"/api/v1/chat/conversations/{escaped}/messages", message))
    assert_sound(call("DELETE", f"/api/v1/chat/conversations/{escaped}"))
    assert_sound(call("POST", "/api/v1/chat/conversations", as_json({"influencer_id": id})))
    assert Conversation.objects.filter(pk=conversation.pk).exists()


BODIES = {
    "duplicate keys": b'{"message_type": "image", "message_type": "text", "content": 1, "content": "x"}',
    "a long integer": b'{"message_type": "text", "content": ' + b"9" * 10_000 + b"}",
    "a long duration": b'{"message_type": "text", "content": "x", "audio_duration_seconds": ' + b"9" * 5_000 + b"}",
    "a huge exponent": b'{"message_type": "text", "content": 1e400}',
    "a tiny exponent": b'{"message_type": "text", "content": 1e-400}',
    "a duration of 1e400": b'{"message_type": "text", "content": "x", "audio_duration_seconds": 1e400}',
    "a duration of 1e300": b'{"message_type": "text", "content": "x", "audio_duration_seconds": 1e300}',
    "a duration in many digits": b'{"message_type": "text", "content": "x", "audio_duration_seconds": "'
    + b"1" * 990
    + b'"}',
    "an id of a huge number": b'{"influencer_id": 1e308}',
    "an id of a long integer": b'{"influencer_id": ' + b"9" * 10_000 + b"}",
    "escaped NUL": b'{"message_type": "text", "content": "a\\u0000b", "influencer_id": "a\\u0000b"}',
    "many fields": b"{" + b",".join(b'"f%d": 1' % n for n in range(20_000)) + b"}",
    "many media": b'{"message_type": "text", "content": "x", "media_urls": [' + b'"",' * 50_000 + b'""]}',
    "999 deep": b'{"message_type": "text", "content": ' + b"[" * 999 + b"]" * 999 + b"}",
    "999 deep in media": b'{"message_type": "text", "content": "x", "media_urls": ' + b"[" * 999 + b"]" * 999 + b"}",
    "1,001 deep": b"[" * 1001 + b"]" * 1001,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hand_made_monster_is_no_crash(name: str, conversation: Conversation) -> None:
    for path in ("/api/v1/chat/conversations", f"/api/v1/chat/conversations/{conversation.pk}/messages"):
        assert_sound(call("POST", path, BODIES[name]))
    assert counted(conversation)


@pytest.mark.parametrize("items", [b'""', b'"x"', b"5", b"null", b'"https://x.example/a"'])
def test_a_list_that_is_too_long_is_refused_as_one(items: bytes, conversation: Conversation) -> None:
    """Ten are allowed; 50,000 complaints would cost seconds and make an answer larger than the request."""
    many = b'{"message_type": "text", "content": "x", "media_urls": [' + b",".join([items] * 20_000) + b"]}"
    response = call("POST", f"/api/v1/chat/conversations/{conversation.pk}/messages", many)

    assert response.status_code == 422
    assert len(response.json()["details"]["errors"]) <= 20
    assert len(response.content) < 5_000


@pytest.mark.parametrize("accept", ["text/html", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "*/*", "a/b/c;;;"])
def test_a_browser_that_looks_around_crashes_nothing(accept: str, conversation: Conversation) -> None:
    """Development shows it the browsable API; that may not crash either."""
    ours = f"/api/v1/chat/conversations/{conversation.pk}"
    paths = ("/", "/health", "/status", "/docs", "/redoc", "/openapi.json", "/openapi.yaml", "/nothing", "/admin")
    api = ("/api/v1/influencers", "/api/v1/influencers/x", "/api/v1/chat/conversations", ours, f"{ours}/messages")
    for path in (*paths, *api):
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "POST"):
            for authorization in (f"Bearer {token('bob')}", "Bearer x", ""):
                response = call(method, path, b"{}", Accept=accept, Authorization=authorization)
                assert response.status_code < 500, (method, path, response.content[:300])
