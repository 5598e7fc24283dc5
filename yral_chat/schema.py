"""What the OpenAPI document says alike for every operation: errors with their examples, headers, limits, links."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema_field
from rest_framework import serializers

from yral_chat import ai
from yral_chat.errors import CODES, MESSAGES
from yral_chat.pagination import MAX_OFFSET

SENTENCES = {
    400: "The body is malformed.",
    401: "The token is missing, malformed, expired or not ours.",
    403: "It belongs to somebody else.",
    404: "It doesn't exist.",
    409: "It can't be done as things stand; `details.reason` says why.",
    413: "The body is too large.",
    415: "The body is of another type.",
    416: "The file has no such part.",
    422: "A value is missing or out of range; `details.errors` says where.",
    429: "Too many requests: `details.limit_type` says of which limit, `Retry-After` for how many seconds.",
    500: "A fault of the service. Give the X-Correlation-ID to its operators.",
    503: "Something that the service needs is down; `Retry-After` says when to try again. A question is kept: send the "
    "same body again.",
}
REASONS = ["idempotency_mismatch", "turn_in_progress", "stopped", "not_the_last_message", "away"]
LIMITS = ["minute", "hour", "model_minute", "upload_minute", "address_second"]  # the last is nginx's


class Object(serializers.Serializer[Any]):  # an answer that no model stands behind; a docstring would be published
    pass


@extend_schema_field({"type": "array", "items": {"type": ["string", "integer"]}})
class LocField(serializers.ListField):
    pass


class ProblemSerializer(Object):
    loc = LocField(
        child=serializers.JSONField(), help_text="The way to the value: body, query, header or path, then names."
    )
    msg = serializers.CharField()
    type = serializers.CharField()


class ErrorDetailsSerializer(Object):
    reason = serializers.ChoiceField(choices=REASONS, required=False, help_text="Of a 409.")
    message_id = serializers.UUIDField(
        required=False, help_text="Of idempotency_mismatch: the message that has the key."
    )
    errors = ProblemSerializer(many=True, required=False, help_text="Of a 422.")  # type: ignore[assignment]
    retry_after = serializers.IntegerField(required=False, help_text="Of a 429: seconds.")
    limit_type = serializers.ChoiceField(choices=LIMITS, required=False, help_text="Of a 429.")


class ErrorSerializer(Object):
    error = serializers.ChoiceField(choices=CODES, help_text="What programs branch on.")
    message = serializers.CharField(help_text="A sentence for a person.")
    details = ErrorDetailsSerializer()


# Each error that a caller may meet, as it is answered; tests/test_schema.py provokes every one of them.


@dataclass(frozen=True, slots=True)
class Example:
    status: int
    code: str
    message: str
    summary: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.code, "message": self.message, "details": self.details}


def _problem(message: str, kind: str, *loc: str | int) -> dict[str, Any]:
    return {"errors": [{"loc": list(loc), "msg": message, "type": kind}]}


def _invalid(summary: str, message: str, kind: str, *loc: str | int) -> Example:
    """Where the sentence is that of the field."""
    return Example(422, "validation_error", message, summary, _problem(message, kind, *loc))


def _invalid_body(summary: str, message: str, kind: str, *loc: str | int) -> Example:
    return Example(422, "validation_error", MESSAGES["validation_error"], summary, _problem(message, kind, *loc))


def _limited(limit: str, seconds: int, summary: str) -> Example:
    message = f"Too many requests. Please try again in {seconds} seconds."
    return Example(429, "rate_limit_exceeded", message, summary, {"retry_after": seconds, "limit_type": limit})


def _standard(status: int, code: str, summary: str) -> Example:
    return Example(status, code, MESSAGES[code], summary)


_MALFORMED = "Invalid authorization header format. Expected: Bearer <token>"
EXAMPLES = {
    "malformed_json": Example(
        400, "bad_request", "The body is not valid JSON (line 1, column 2).", "The body is no JSON"
    ),
    "wrong_format": Example(
        400,
        "bad_request",
        "This is not a picture that we can open. Allowed formats: JPEG, PNG, GIF, WebP, HEIC.",
        "The bytes are no picture, whatever the name says",
    ),
    "no_token": Example(401, "unauthorized", "Missing authorization header", "No token was sent"),
    "malformed_header": Example(401, "unauthorized", _MALFORMED, "Another scheme, or two words too many"),
    "invalid_token": Example(401, "unauthorized", "Invalid token", "The signature or the user's id doesn't hold"),
    "expired_token": Example(401, "unauthorized", "Token has expired", "It is over, or says not when: log in again"),
    "wrong_issuer": Example(401, "unauthorized", "Invalid token issuer", "Somebody else's token"),
    "no_subject": Example(401, "unauthorized", "Invalid token: missing sub", "Neither `user_id` nor `sub`"),
    "not_yours": Example(
        403, "forbidden", "This conversation belongs to somebody else.", "Another user's conversation"
    ),
    "not_your_upload": Example(
        403, "forbidden", "A message can only use files that you uploaded yourself.", "Another user's file"
    ),
    "bad_link": _standard(403, "forbidden", "The link is over, or was changed"),
    "no_influencer": Example(404, "not_found", "Influencer not found", "No such persona, or it isn't active"),
    "no_conversation": Example(404, "not_found", "Conversation not found", "No such conversation, or deleted"),
    "no_message": Example(404, "not_found", "Message not found", "No such question in this conversation"),
    "no_file": _standard(404, "not_found", "No such file"),
    "idempotency_mismatch": Example(
        409,
        "conflict",
        "This key was sent before, with another message.",
        "The same key with another body",
        {"reason": "idempotency_mismatch", "message_id": "9b2f7c1e-5d43-4c0a-8f1e-2a6b7c8d9e0f"},
    ),
    "turn_in_progress": Example(
        409,
        "conflict",
        "The persona is still answering another message.",
        "Another message is being answered, for too long",
        {"reason": "turn_in_progress"},
    ),
    "stopped": Example(
        409, "conflict", "The turn was stopped before there was an answer.", "Stopped meanwhile", {"reason": "stopped"}
    ),
    "not_the_last_message": Example(
        409,
        "conflict",
        "Only the last answer can be replaced.",
        "Something was said since",
        {"reason": "not_the_last_message"},
    ),
    "away": Example(
        409,
        "conflict",
        "I'm away for a little while. Write to me again later!",
        "The persona is paused, or its tokens of the day are spent: the answer that is there stays",
        {"reason": "away"},
    ),
    "too_large": _standard(413, "payload_too_large", "The body is larger than any message"),
    "file_too_large": Example(
        413, "payload_too_large", "The file is too large: at most 10 MB are allowed for this type.", "Too many bytes"
    ),
    "wrong_type": _standard(415, "unsupported_media_type", "Another Content-Type"),
    "bad_range": _standard(416, "range_not_satisfiable", "The file ends before"),
    "limit_out_of_range": _invalid(
        "Out of range: never clamped", "Must be between 1 and 100.", "out_of_range", "query", "limit"
    ),
    "wrong_order": _invalid("Neither asc nor desc", "Must be one of: asc, desc.", "enum", "query", "order"),
    "no_influencer_id": _invalid_body(
        "A field is missing", "This field is required.", "required", "body", "influencer_id"
    ),
    "no_content": _invalid_body(
        "A text without a text", "A text message needs content.", "required", "body", "content"
    ),
    "unknown_message_type": _invalid_body(
        "Another type", "Must be one of: text, image, multimodal, audio.", "invalid_choice", "body", "message_type"
    ),
    "no_upload_file": _invalid_body("The file is missing", "No file was submitted.", "required", "body", "file"),
    "unknown_scene": _invalid(
        "The failure simulator doesn't know it, or this is production",
        f"One of: {', '.join(ai.scenes())}.",
        "invalid",
        "header",
        "X-Chat-Scenario",
    ),
    "wrong_event": _invalid(
        "An event of another turn", "This is no event of this turn.", "invalid", "header", "Last-Event-ID"
    ),
    "minute": _limited("minute", 42, "All requests of a minute"),
    "hour": _limited("hour", 1800, "All requests of an hour"),
    "model_minute": _limited("model_minute", 42, "Messages of a minute"),
    "upload_minute": _limited("upload_minute", 42, "Uploads of a minute"),
    "fault": _standard(500, "internal_server_error", "Tell the operators the X-Correlation-ID"),
    "model_down": _standard(503, "ai_service_unavailable", "No model answers; the question is kept"),
    "storage_down": _standard(503, "storage_unavailable", "Files can't be stored or read"),
    "keys_unknown": _standard(503, "authentication_unavailable", "The keys of tokens can't be fetched"),
}
TOKEN = ("no_token", "malformed_header", "invalid_token", "expired_token", "wrong_issuer", "no_subject")
BODY = ("malformed_json", "too_large", "wrong_type")


def errors(*names: str) -> dict[int, OpenApiResponse]:
    """The answers with these EXAMPLES, by status."""
    by_status: dict[int, list[str]] = {}
    for name in names:
        by_status.setdefault(EXAMPLES[name].status, []).append(name)
    return {
        status: OpenApiResponse(
            ErrorSerializer,
            SENTENCES[status],
            examples=[_shown(name) for name in of_status],
        )
        for status, of_status in by_status.items()
    }


def _shown(name: str) -> OpenApiExample:
    example = EXAMPLES[name]
    return OpenApiExample(name, example.body, summary=example.summary, status_codes=[str(example.status)])


# Headers

LIMIT_HEADERS = {
    "X-RateLimit-Limit-Minute": "How many requests of the caller pass in a minute of the clock.",
    "X-RateLimit-Limit-Hour": "And in an hour.",
    "X-RateLimit-Remaining-Minute": "How many are left of the minute.",
    "X-RateLimit-Remaining-Hour": "And of the hour.",
}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Correlation-ID": {
        "description": "The request's, as sent or made: it stands in every line of the service's log about it.",
        "schema": {"type": "string"},
    },
    "X-API-Version": {"description": "Of the paths: v1.", "schema": {"type": "string", "const": "v1"}},
    "X-Message-ID": {
        "description": "The id of the question, to join, stop or regenerate its answer.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "The scheme.", "schema": {"type": "string"}},
    **{
        name: {"description": description, "schema": {"type": "integer", "minimum": 0}}
        for name, description in LIMIT_HEADERS.items()
    },
}


def _headers_of(path: str, status: str, response: dict[str, Any]) -> Iterable[str]:
    yield from ("X-Correlation-ID", "X-API-Version")
    if path.startswith("/api/"):
        yield from LIMIT_HEADERS
    if status in ("429", "503") and path != "/health":
        yield "Retry-After"
    if status == "401":
        yield "WWW-Authenticate"
    if "text/event-stream" in response.get("content", {}):
        yield "X-Message-ID"


# What server-sent events hold


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [name for name in properties if name != "stopped"]}


_MESSAGE = {"$ref": "#/components/schemas/Message"}
EVENTS = {
    "TokenEvent": {"description": "Of an event `token`.", **_object(text={"type": "string"})},
    "DoneEvent": {
        "description": "Of the event `done`, the last one.",
        **_object(
            user_message=_MESSAGE,
            assistant_message={"oneOf": [_MESSAGE, {"type": "null"}]},
            blocked={"type": "boolean"},
            away={"type": "boolean", "description": "The answer is the persona's away message."},
            provider={"type": "string"},
            model={"type": "string"},
            tokens={"type": "integer", "minimum": 0},
            stopped={"type": "boolean", "description": "There, and true, if the answer was stopped."},
        ),
    },
    "ErrorEvent": {
        "description": "Of the event `error`, the last one. BLOCKED_CONTENT takes back what went out.",
        **_object(
            code={"type": "string", "enum": ["BLOCKED_CONTENT", "TRANSIENT", "NO_PROVIDER", "UNKNOWN"]},
            message={"type": "string"},
            retryable={"type": "boolean"},
        ),
    },
}


# What a message may hold, and what it needs by its type: spectacular can't say either. Limits are the serializer's.

NO_NUL = r"^[^\u0000]*$"
NO_BLANK = r"^[^\u0000]*[^\u0000\s][^\u0000]*$"


def _as_sent(fields: dict[str, dict[str, Any]]) -> None:
    fields["content"] |= {
        "type": ["string", "number", "null"],
        "pattern": NO_NUL,
        "description": "What the user says; spaces around it are taken off. A number is stored as its text.",
    }
    fields["client_message_id"] |= {"type": ["string", "number", "null"], "pattern": NO_NUL}
    link = {"type": "string", "maxLength": fields["media_urls"]["items"]["maxLength"], "pattern": NO_BLANK}
    fields["media_urls"] = {
        "oneOf": [fields["media_urls"] | {"type": "array", "items": link}, link, {"type": "null"}],
        "description": "Storage keys of the caller's uploads, links to them, or https addresses of other sites. One "
        "string is a list of one.",
    }
    fields["audio_url"] |= {
        "pattern": NO_NUL,
        "description": "A storage key, a link or an address, as in media_urls.",
    }


def _needs(kinds: list[str], name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"message_type": {"enum": kinds}}},
        "then": {"required": [name], "properties": {name: schema}},
    }


# OpenAPI 3.1's way to say bytes: Swagger UI shows a button for it, and typed clients take a Blob. `binary` is 3.0's.
FILE = {"contentMediaType": "application/octet-stream"}
NEEDS = [
    _needs(["text"], "content", {"type": ["string", "number"], "pattern": r"\S"}),
    _needs(["image", "multimodal"], "media_urls", {"type": ["array", "string"], "minItems": 1}),
    _needs(["audio"], "audio_url", {"type": "string", "pattern": r"\S"}),
]


# Where an answer's values go next: links for readers, and for tools that try the operations in turn

CONVERSATION = {"conversation_id": "$response.body#/id"}
QUESTION = {
    "conversation_id": "$request.path.conversation_id",
    "question_id": "$response.body#/user_message/id",
}
LINKS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("listInfluencers", "200"): {
        "createConversation": {"requestBody": {"influencer_id": "$response.body#/influencers/0/id"}},
        "getInfluencer": {"parameters": {"influencer_id": "$response.body#/influencers/0/id"}},
    },
    ("createConversation", "201"): {
        name: {"parameters": CONVERSATION}
        for name in ("sendMessage", "streamMessage", "listMessages", "deleteConversation")
    },
    ("sendMessage", "200"): {name: {"parameters": QUESTION} for name in ("followTurn", "stopTurn", "regenerateAnswer")},
    ("uploadMedia", "200"): {"sendMessage": {"description": "`storage_key` goes into `media_urls` or `audio_url`."}},
}


# Addresses that no view of the API answers


def _page(operation: str, summary: str, content_type: str, kind: str = "string") -> dict[str, Any]:
    content = {content_type: {"schema": {"type": kind}}}
    described = {"description": "", "content": content}
    return {"get": {"operationId": operation, "summary": summary, "tags": ["Service"], "responses": {"200": described}}}


def key(name: str) -> str:
    """Of an example in the document, as spectacular makes it."""
    return "".join(word.capitalize() for word in name.split("_"))


def _error_response(*names: str) -> dict[str, Any]:
    status = EXAMPLES[names[0]].status
    examples = {key(name): {"$ref": f"#/components/examples/{key(name)}"} for name in names}
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": SENTENCES[status], "content": {"application/json": {"schema": schema, "examples": examples}}}


def _media() -> dict[str, Any]:
    file = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    query = ("expires", "signature")
    return {
        "get": {
            "operationId": "getMedia",
            "summary": "A file, by a link from an answer",
            "description": "Links are good for a while, and only as they were given. With S3 they lead to the bucket.",
            "tags": ["Media"],
            "parameters": [
                {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}},
                *({"name": name, "in": "query", "schema": {"type": "string"}} for name in query),
                {"name": "Range", "in": "header", "schema": {"type": "string", "examples": ["bytes=0-1023"]}},
            ],
            "responses": {
                "200": {"description": "The file.", "content": file},
                "206": {"description": "The part of it that Range asked for.", "content": file},
                **{
                    str(EXAMPLES[name].status): _error_response(name)
                    for name in ("bad_link", "no_file", "bad_range", "storage_down")
                },
            },
        }
    }


def _metrics() -> dict[str, Any]:
    item = _page("metrics", "Prometheus metrics, for whom METRICS_TOKEN lets see them", "text/plain")
    item["get"]["responses"]["404"] = _error_response("no_file")
    return item


def _try() -> dict[str, Any]:
    item = _page(
        "tryPage", "A page to chat with the personas; in production only where ENABLE_TRY_PAGE says so", "text/html"
    )
    item["get"]["responses"]["404"] = _error_response("no_file")
    return item


PATHS = {
    "/metrics": _metrics(),
    "/try": _try(),
    "/openapi.json": _page("openapiJson", "This document", "application/vnd.oai.openapi+json", "object"),
    "/openapi.yaml": _page("openapiYaml", "This document as YAML", "application/vnd.oai.openapi", "string"),
    "/docs": _page("docs", "This document to try out (Swagger UI)", "text/html"),
    "/redoc": _page("redoc", "This document to read (ReDoc)", "text/html"),
    "/media/{key}": _media(),
}


def completed(result: Any, generator: Any, request: Any, public: bool) -> Any:
    """The OpenAPI document, for drf-spectacular's POSTPROCESSING_HOOKS."""
    for path, operation in _operations(result):
        for status, response in operation["responses"].items():
            _refer(status, response)
        for status, said in _anywhere(path, operation):
            _add(operation["responses"], status, said)
        _link(operation)
        operation["responses"] = dict(sorted(operation["responses"].items()))
    result["paths"] |= PATHS
    for path, operation in _operations(result):
        for status, response in operation["responses"].items():
            names = _headers_of(path, status, response)
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    result["components"]["schemas"] |= EVENTS
    message = result["components"]["schemas"]["SendMessageRequest"]
    _as_sent(message["properties"])
    message["allOf"] = NEEDS
    result["components"]["schemas"]["UploadRequest"]["properties"]["file"] = FILE
    result["components"] |= {
        "headers": HEADERS,
        "examples": {key(name): {"summary": one.summary, "value": one.body} for name, one in EXAMPLES.items()},
    }
    return result


def _refer(status: str, response: dict[str, Any]) -> None:
    """Errors are the same wherever they happen: each stands once in the document."""
    for content in response.get("content", {}).values() if status >= "400" else ():
        for name in content.get("examples", {}):
            if name in {key(known) for known in EXAMPLES}:
                content["examples"][name] = {"$ref": f"#/components/examples/{name}"}


def _add(responses: dict[str, Any], status: str, said: dict[str, Any]) -> None:
    known = responses.setdefault(status, said)
    known["content"]["application/json"]["examples"] |= said["content"]["application/json"]["examples"]


def _link(operation: dict[str, Any]) -> None:
    for (of, status), links in LINKS.items():
        if of == operation["operationId"]:
            operation["responses"][status]["links"] = {
                name: {"operationId": name, **link} for name, link in links.items()
            }


def _operations(result: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in result["paths"].items():
        for operation in item.values():
            yield path, operation


def _anywhere(path: str, operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What any operation of the API may answer."""
    if not path.startswith("/api/"):
        return
    kind = "upload_minute" if operation["operationId"] == "uploadMedia" else "model_minute"
    costs_more = operation["operationId"] in ("uploadMedia", "sendMessage", "streamMessage", "regenerateAnswer")
    yield "429", _error_response("minute", "hour", *([kind] if costs_more else []))
    yield "500", _error_response("fault")
    if operation.get("security"):
        yield "401", _error_response(*TOKEN)
        yield "503", _error_response("keys_unknown")


class Schema(AutoSchema):
    """Operations are grouped by the `tag` of their view."""

    def get_tags(self) -> list[str]:
        return [self.view.tag] if hasattr(self.view, "tag") else super().get_tags()

    def _is_list_view(self, serializer: Any = None) -> bool:
        """A page is an object; spectacular would take it for one of many."""
        return False


def PAGE(*, limit: int, most: int) -> list[OpenApiParameter]:  # noqa: N802
    number = {"type": "integer", "minimum": 1, "maximum": most, "default": limit}
    start = {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}
    return [OpenApiParameter("limit", number), OpenApiParameter("offset", start)]


def ID(name: str) -> OpenApiParameter:  # noqa: N802
    return OpenApiParameter(name, OpenApiTypes.STR, OpenApiParameter.PATH)
