"""Nothing that a client of the last release relies on goes away, unless the changelog says so."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.breaking_changes import broken

pytestmark = pytest.mark.own_database
ROOT: Path = settings.BASE_DIR
NOW = json.loads((ROOT / "docs/api/openapi.json").read_text())
RELEASED = json.loads((ROOT / "docs/api/released.json").read_text())


def breaks_told(changelog: str) -> str:
    """The lines of the newest version that begin with **Breaking**."""
    newest = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    return "\n".join(re.findall(r"^- \*\*Breaking\*\*.*(?:\n  .*)*", newest, flags=re.MULTILINE))


def test_what_the_last_release_promised_holds_or_the_changelog_says_that_it_does_not() -> None:
    told = breaks_told((ROOT / "CHANGELOG.md").read_text())
    untold = [line for line in broken(RELEASED, NOW) if f"`{line.partition(':')[0]}`" not in told]

    assert not untold, f"Say so in CHANGELOG.md ('- **Breaking** `operationId`: …'), or don't do it: {untold}"


def test_only_breaks_of_the_newest_version_are_told() -> None:
    newest = "## 2.0.0\n\n- **Breaking** `sendMessage`: no text\n  at all\n- New\n\n"
    text = f"# Changelog\n\n{newest}## 1.0.0\n\n- **Breaking** `old`\n"

    assert breaks_told(text) == "- **Breaking** `sendMessage`: no text\n  at all"


def schemas(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]


def operation(document: dict[str, Any], path: str, method: str) -> Any:
    return document["paths"][f"/api/v1/{path}"][method]


Change = Callable[[dict[str, Any]], Any]
LIST, SEND = ("influencers", "get"), ("chat/conversations/{conversation_id}/messages", "post")
BREAKING: dict[str, tuple[Change, str]] = {
    "a route is gone": (lambda d: d["paths"].pop("/api/v1/influencers"), "listInfluencers: GET"),
    "a field of an answer is gone": (
        lambda d: schemas(d)["Message"]["properties"].pop("content"),
        "sendMessage: answer.assistant_message.content is gone",
    ),
    "a field may be null": (
        lambda d: schemas(d)["Message"]["properties"].update(content={"type": ["string", "null"]}),
        "listMessages: answer.messages[].content can be null now",
    ),
    "a field may be missing": (
        lambda d: schemas(d)["Influencer"]["required"].remove("name"),
        "getInfluencer: answer.name may be missing now",
    ),
    "a field has another type": (
        lambda d: schemas(d)["Influencer"]["properties"].update(name={"type": "integer"}),
        "getInfluencer: answer.name can be integer now",
    ),
    "a new value": (
        lambda d: schemas(d)["InfluencerStatus"]["enum"].append("paused"),
        "getInfluencer: answer.is_active can be 'paused' now",
    ),
    "a new required field": (
        lambda d: schemas(d)["SendMessageRequest"]["required"].append("content"),
        "sendMessage: body.content is required now",
    ),
    "less is taken": (
        lambda d: schemas(d)["SendMessageRequest"]["properties"]["content"].update(maxLength=100),
        "sendMessage: body.content has the maxLength 100 now",
    ),
    "a type is refused": (
        lambda d: schemas(d)["SendMessageRequest"]["properties"]["content"].update(type=["string", "null"]),
        "sendMessage: body.content can't be number any more",
    ),
    "a value is refused": (
        lambda d: schemas(d)["MessageType"]["enum"].remove("audio"),
        "sendMessage: body.message_type can't be 'audio' any more",
    ),
    "a parameter is gone": (
        lambda d: operation(d, *LIST)["parameters"].pop(),
        "listInfluencers: query parameter offset is gone",
    ),
    "a new required parameter": (
        lambda d: operation(d, *LIST)["parameters"].append(
            {"in": "query", "name": "language", "required": True, "schema": {"type": "string"}}
        ),
        "listInfluencers: query parameter language is required now",
    ),
    "a token is needed": (
        lambda d: operation(d, *LIST).update(security=[{"bearer": []}]),
        "listInfluencers: needs a token now",
    ),
    "another status": (
        lambda d: operation(d, *SEND)["responses"].update({"201": operation(d, *SEND)["responses"].pop("200")}),
        "sendMessage: doesn't answer 200 any more",
    ),
    "another status of an error": (
        lambda d: operation(d, *SEND)["responses"].update({"400": operation(d, *SEND)["responses"].pop("409")}),
        "sendMessage: doesn't answer 409 any more",
    ),
    "a field of errors is gone": (
        lambda d: schemas(d)["ErrorDetails"]["properties"].pop("retry_after"),
        "sendMessage: error.details.retry_after is gone",
    ),
    "a field of what may be null is gone": (
        lambda d: schemas(d)["LastMessage"]["properties"].pop("content"),
        "listConversations: answer.conversations[].last_message.content is gone",
    ),
    "a field of an event is gone": (
        lambda d: schemas(d)["DoneEvent"]["properties"].pop("assistant_message"),
        "streamMessage: DoneEvent.assistant_message is gone",
    ),
    "an event is gone": (lambda d: schemas(d).pop("TokenEvent"), "followTurn: TokenEvent is gone"),
    "a header is gone": (
        lambda d: operation(d, f"{SEND[0]}/stream", "post")["responses"]["200"]["headers"].pop("X-Message-ID"),
        "streamMessage: 200 has no header X-Message-ID any more",
    ),
    "fewer of a list are taken": (
        lambda d: schemas(d)["SendMessageRequest"]["properties"]["media_urls"]["oneOf"][0].update(maxItems=3),
        "sendMessage: body.media_urls has the maxItems 3 now",
    ),
    "a new condition": (
        lambda d: schemas(d)["SendMessageRequest"]["allOf"].append(
            {"if": {"required": ["audio_url"]}, "then": {"required": ["audio_duration_seconds"]}}
        ),
        "sendMessage: body must fulfil another condition now",
    ),
    "a narrower type": (
        lambda d: schemas(d)["SendMessageRequest"]["properties"]["content"].update(type=["string", "integer", "null"]),
        "sendMessage: body.content can't be number any more",
    ),
    "a wider type": (
        lambda d: schemas(d)["Message"]["properties"]["token_count"].update(type=["number", "null"]),
        "sendMessage: answer.assistant_message.token_count can be number now",
    ),
    "a stricter format": (
        lambda d: schemas(d)["OpenConversationRequest"]["properties"]["influencer_id"].update(format="uuid"),
        "createConversation: body.influencer_id must be of the format uuid now",
    ),
    "a looser format": (
        lambda d: schemas(d)["Message"]["properties"]["created_at"].pop("format"),
        "sendMessage: answer.assistant_message.created_at is no date-time now",
    ),
    "unknown fields are refused": (
        lambda d: schemas(d)["SendMessageRequest"].update(additionalProperties=False),
        "sendMessage: body takes no other fields any more",
    ),
    "another name": (
        lambda d: operation(d, *SEND).update(operationId="say"),
        "sendMessage: is called say now",
    ),
    "another body": (
        lambda d: operation(d, *SEND)["requestBody"]["content"].pop("application/json"),
        "sendMessage: takes no application/json any more",
    ),
}
HARMLESS: dict[str, Change] = {
    "a new field of an answer": lambda d: schemas(d)["Message"]["properties"].update(mood={"type": "string"}),
    "a new optional field": lambda d: schemas(d)["SendMessageRequest"]["properties"].update(mood={"type": "string"}),
    "a new route": lambda d: d["paths"].update({"/api/v2/new": d["paths"]["/api/v1/influencers"]}),
    "more is taken": lambda d: schemas(d)["SendMessageRequest"]["properties"]["content"].update(maxLength=9000),
    "anything is taken": lambda d: schemas(d)["UploadRequest"]["properties"]["type"].clear(),
    "a new optional parameter": lambda d: operation(d, *LIST)["parameters"].append(
        {"in": "query", "name": "language", "schema": {"type": "string"}}
    ),
    "more may be null": lambda d: schemas(d)["SendMessageRequest"]["properties"]["message_type"].update(
        oneOf=[{"$ref": schemas(d)["SendMessageRequest"]["properties"]["message_type"].pop("$ref")}, {"type": "null"}]
    ),
    "a new code of errors": lambda d: schemas(d)["ErrorCode"]["enum"].append("new"),
    "a new status of an error": lambda d: operation(d, *LIST)["responses"].update(
        {"409": operation(d, *SEND)["responses"]["409"]}
    ),
    "other words": lambda d: operation(d, *LIST).update(summary="All personas"),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_breaking_change_is_found(name: str) -> None:
    change, expected = BREAKING[name]
    changed = copy.deepcopy(NOW)
    change(changed)

    assert any(line.startswith(expected) for line in broken(NOW, changed)), broken(NOW, changed)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_is_none(name: str) -> None:
    changed = copy.deepcopy(NOW)
    HARMLESS[name](changed)

    assert broken(NOW, changed) == []
