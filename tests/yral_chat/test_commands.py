"""manage.py issue_token and export_openapi, and what the exported schema promises."""

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from django.core.management import CommandError, call_command
from django.test import Client

from tests.conftest import CANARY
from yral_chat.management.commands import export_openapi

CHATS = "/api/v1/chat/conversations"
UPLOAD = "/api/v1/media/upload"


def printed(*command: str) -> str:
    out = io.StringIO()
    call_command(*command, stdout=out)
    return out.getvalue()


# issue_token


@pytest.mark.django_db
@pytest.mark.parametrize("user", ["alice", "u" * 255, "देवी", "user with spaces", "-dash"])
def test_an_issued_token_opens_the_api(user: str) -> None:
    made = printed("issue_token", "--", user) if user.startswith("-") else printed("issue_token", user)

    assert made.endswith("\n")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", made.strip())
    response = Client().get(CHATS, headers={"Authorization": f"Bearer {made.strip()}"})
    assert response.status_code == 200, response.content
    assert jwt.decode(made.strip(), options={"verify_signature": False})["sub"] == user


@pytest.mark.parametrize(
    ("given", "seconds"), [("45s", 45), ("30m", 1800), ("1h", 3600), ("7d", 7 * 86400), ("0005m", 300), (None, 3600)]
)
def test_it_lives_as_long_as_asked(given: str | None, seconds: int) -> None:
    made = printed("issue_token", "alice", *(["--expires", given] if given else []))

    claims = jwt.decode(made.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == seconds
    assert abs(claims["iat"] - time.time()) < 10


@pytest.mark.django_db
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_it_follows_the_settings(algorithm: str, settings: Any) -> None:
    settings.JWT_ALGORITHM = algorithm
    settings.JWT_SECRET_KEY = "k" * 64
    settings.JWT_ISSUER = ["https://first.example", "https://second.example"]
    settings.JWT_AUDIENCE = ["yral-chat"]

    made = printed("issue_token", "alice").strip()

    assert Client().get(CHATS, headers={"Authorization": f"Bearer {made}"}).status_code == 200


@pytest.mark.parametrize(
    "expires", ["", "0s", "00h", "1", "h", "-1h", "1.5h", "1w", "1 h", "1h\n", "1H", "1e3s", "forever", "9" * 12 + "d"]
)
def test_it_refuses_a_lifetime_that_is_none(expires: str) -> None:
    with pytest.raises(CommandError, match="--expires"):
        printed("issue_token", "alice", f"--expires={expires}")


@pytest.mark.parametrize(
    "user", ["", "   ", "u" * 256, "a\x00b", "a\nb"], ids=["empty", "blank", "long", "NUL", "line"]
)
def test_it_refuses_a_user_that_the_api_would_refuse(user: str) -> None:
    with pytest.raises(CommandError, match="user id"):
        printed("issue_token", user)


def test_it_refuses_to_sign_where_somebody_else_does(settings: Any) -> None:
    settings.JWT_ALGORITHM, settings.JWT_PUBLIC_KEY = "RS256", "a PEM"

    with pytest.raises(CommandError, match="RS256"):
        printed("issue_token", "alice")


def test_it_refuses_to_work_in_production(settings: Any) -> None:
    settings.PRODUCTION = True

    with pytest.raises(CommandError, match="production"):
        printed("issue_token", "alice")


# export_openapi


def test_the_files_in_the_repository_are_up_to_date() -> None:
    assert "up to date" in printed("export_openapi", "--check")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Path:
    """The command writes into a folder of the test's."""
    settings.BASE_DIR = tmp_path
    monkeypatch.setattr(export_openapi, "FOLDER", tmp_path / "docs" / "api")
    return tmp_path / "docs" / "api"


def test_it_writes_both_files_and_they_say_the_same(elsewhere: Path) -> None:
    printed("export_openapi")

    assert sorted(path.name for path in elsewhere.iterdir()) == ["openapi.json", "openapi.yaml"]
    assert json.loads((elsewhere / "openapi.json").read_text()) == yaml.safe_load(
        (elsewhere / "openapi.yaml").read_text()
    )
    assert "up to date" in printed("export_openapi", "--check")


@pytest.mark.parametrize("name", ["openapi.json", "openapi.yaml"])
@pytest.mark.parametrize("how", ["changed", "missing", "empty"])
def test_drift_is_noticed_and_nothing_written(elsewhere: Path, name: str, how: str) -> None:
    printed("export_openapi")
    path = elsewhere / name
    if how == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text().replace("sendMessage", "sendMassage") if how == "changed" else "")
    before = path.read_text() if path.exists() else None

    with pytest.raises(CommandError, match=name):
        printed("export_openapi", "--check")
    assert (path.read_text() if path.exists() else None) == before


def test_a_check_makes_no_folder(elsewhere: Path) -> None:
    with pytest.raises(CommandError):
        printed("export_openapi", "--check")
    assert not elsewhere.exists()


# What the schema says


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(Client().get("/openapi.json").content)


def operations(schema: Any) -> dict[tuple[str, str], Any]:
    methods = ("get", "post", "put", "patch", "delete", "head", "options", "trace")
    return {
        (method, path): operation
        for path, item in schema["paths"].items()
        for method, operation in item.items()
        if method in methods
    }


PRIVATE = {
    ("post", CHATS): "createConversation",
    ("get", CHATS): "listConversations",
    ("get", CHATS + "/{conversation_id}/messages"): "listMessages",
    ("post", CHATS + "/{conversation_id}/messages"): "sendMessage",
    ("post", CHATS + "/{conversation_id}/messages/stream"): "streamMessage",
    ("get", CHATS + "/{conversation_id}/messages/{question_id}/stream"): "followTurn",
    ("post", CHATS + "/{conversation_id}/messages/{question_id}/stop"): "stopTurn",
    ("post", CHATS + "/{conversation_id}/messages/{question_id}/regenerate"): "regenerateAnswer",
    ("delete", CHATS + "/{conversation_id}"): "deleteConversation",
    ("post", UPLOAD): "uploadMedia",
}
PUBLIC = {
    ("get", "/api/v1/influencers"): "listInfluencers",
    ("get", "/api/v1/influencers/{influencer_id}"): "getInfluencer",
    ("get", "/health"): "healthCheck",
    ("get", "/status"): "systemStatus",
}


def test_every_operation_has_the_id_that_clients_generate_names_from(schema: Any) -> None:
    ids = {at: operation["operationId"] for at, operation in operations(schema).items()}

    assert (PRIVATE | PUBLIC).items() <= ids.items()
    pages = {
        ("get", path)
        for path in ("/", "/metrics", "/openapi.json", "/openapi.yaml", "/docs", "/redoc", "/try", "/media/{key}")
    }
    assert set(ids) - set(PRIVATE | PUBLIC) == pages
    assert len(set(ids.values())) == len(ids)


def test_a_token_is_asked_for_only_where_one_is_needed(schema: Any) -> None:
    (name,) = schema["components"]["securitySchemes"]
    scheme = schema["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert not schema.get("security")
    for at, operation in operations(schema).items():
        if at in PRIVATE:
            assert operation["security"] == [{name: []}], at
        else:
            assert operation.get("security", [{}]) in ([], [{}]), at


def test_a_private_operation_tells_of_401_and_a_created_conversation_is_201(schema: Any) -> None:
    for at, operation in operations(schema).items():
        answers = set(operation["responses"])
        assert ("401" in answers) == (at in PRIVATE), at
        if "{conversation_id}" in at[1]:
            assert {"403", "404"} <= answers
        if "requestBody" in operation:
            assert {"400", "415", "422"} <= answers
    assert "201" in operations(schema)["post", CHATS]["responses"]
    assert "200" not in operations(schema)["post", CHATS]["responses"]
    assert "204" not in operations(schema)["delete", CHATS + "/{conversation_id}"]["responses"]


def test_every_error_has_the_one_shape(schema: Any) -> None:
    shapes = {
        content["schema"]["$ref"]
        for (_, path), operation in operations(schema).items()
        for status, answer in operation["responses"].items()
        for content in answer["content"].values()
        if status >= "400" and path != "/health"
    }
    (shape,) = shapes
    assert set(schema["components"]["schemas"][shape.rsplit("/", 1)[1]]["properties"]) == {
        "error",
        "message",
        "details",
    }


def test_every_operation_of_the_api_tells_of_the_rate_limits(schema: Any) -> None:
    general = {f"X-RateLimit-{what}-{window}" for what in ("Limit", "Remaining") for window in ("Minute", "Hour")}
    for (_, path), operation in operations(schema).items():
        answers = operation["responses"]
        assert ("429" in answers) == path.startswith("/api/"), path
        if "429" in answers:
            assert set(answers["429"]["headers"]) >= {"Retry-After", *general}
            good = [answer for status, answer in answers.items() if status.startswith("2")]
            assert good
            assert all(general <= set(answer["headers"]) for answer in good), path
    assert {"Retry-After", *general} <= set(schema["components"]["headers"])


def test_only_an_upload_takes_another_format_than_json_and_none_gives_one(schema: Any) -> None:
    for at, operation in operations(schema).items():
        for status, answer in operation["responses"].items() if at[1].startswith("/api/") else ():
            given = "text/event-stream" if at[1].endswith("/stream") and status == "200" else "application/json"
            assert set(answer.get("content", {given: 0})) == {given}, at
        if "requestBody" in operation:
            taken = "multipart/form-data" if at == ("post", UPLOAD) else "application/json"
            assert set(operation["requestBody"]["content"]) == {taken}, at


def test_an_upload_needs_a_file_and_one_of_two_types_and_tells_of_all_that_can_go_wrong(schema: Any) -> None:
    operation = operations(schema)["post", UPLOAD]
    named = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rsplit("/", 1)[1]
    body = schema["components"]["schemas"][named]

    assert set(operation["responses"]) == {"200", "400", "401", "413", "415", "422", "429", "500", "503"}
    assert set(body["required"]) == {"file", "type"}
    assert "image" in json.dumps(schema["components"]["schemas"]) + json.dumps(body)
    assert body["properties"]["file"] == {"contentMediaType": "application/octet-stream"}, "OpenAPI 3.1 says bytes so"


def test_the_schema_names_nothing_that_stays_on_the_server(schema: Any) -> None:
    text = json.dumps(schema)
    for secret in ("system_instructions", "body_hash", "in_reply_to", "personality_traits", "deflection", CANARY):
        assert secret not in text


def test_page_limits_are_those_of_the_contract(schema: Any) -> None:
    limits = {
        (operation["operationId"], parameter["name"]): parameter["schema"]
        for operation in operations(schema).values()
        for parameter in operation.get("parameters", ())
    }
    for operation_id, default, most in (
        ("listInfluencers", 50, 100),
        ("listConversations", 20, 100),
        ("listMessages", 50, 200),
    ):
        limit = limits[operation_id, "limit"]
        assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, most, default)
        assert limits[operation_id, "offset"]["minimum"] == 0
    assert set(limits["listMessages", "order"]["enum"]) == {"asc", "desc"}
