import re

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from conversations import examples, services
from conversations.events import Follower
from conversations.live import Live
from conversations.models import Conversation, get_owned
from conversations.serializers import (
    ConversationPageSerializer,
    ConversationSerializer,
    DeletedSerializer,
    MessagePageSerializer,
    OpenConversationSerializer,
    SendMessageSerializer,
    StoppedTurnSerializer,
    TurnSerializer,
    conversation_rows,
    conversations_json,
    done_json,
    listed,
    messages_page,
    opened_json,
    stopped_json,
    turn_json,
)
from conversations.turns import Draft
from yral_chat import ai
from yral_chat.authentication import caller_id
from yral_chat.database import release_connection
from yral_chat.errors import Invalid, invalid_query
from yral_chat.pagination import base_url, one_of, page_of
from yral_chat.schema import BODY, ID, PAGE, errors

EVENT_ID = re.compile(r"([0-9a-fA-F-]{36})/([0-9]{1,18})")
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "maxLength": 255, "pattern": "^[ -~]*$"},
    OpenApiParameter.HEADER,
    description="The same key with the same body, within 7 days, is the same message; with another body it's a 409.",
)
LAST_EVENT_ID = OpenApiParameter(
    "Last-Event-ID",
    {"type": "string", "pattern": f"^({EVENT_ID.pattern})?$"},
    OpenApiParameter.HEADER,
    description="The last event that arrived: what came after it is sent.",
)
SCENE = OpenApiParameter(
    "X-Chat-Scenario",
    {"type": "string", "enum": list(ai.scenes())},
    OpenApiParameter.HEADER,
    description="The failure simulator of development and staging, refused in production: no model is asked, and\n"
    + "\n".join(f"- `{name}`: {says}" for name, says in ai.scenes().items()),
)
STREAMING = (
    *(*BODY, "not_yours", "not_your_upload", "no_conversation", "no_influencer", "idempotency_mismatch"),
    *("turn_in_progress", "no_content", "unknown_message_type", "unknown_scene"),
)
SENDING = (*STREAMING, "stopped", "model_down")  # which in a stream are events
STREAM = (
    "Server-sent events: `token` with `text` for each piece of the answer, then one `done` (`user_message`, "
    "`assistant_message`, `provider`, `model`, `tokens`, `blocked`, `away`, and `stopped` where it was) or one `error` "
    "(`code` BLOCKED_CONTENT, TRANSIENT, NO_PROVIDER or UNKNOWN, `message`, `retryable`). Lines that start with a "
    "colon keep the connection alive. The answer is written to its end, and stored, also when nobody listens any more."
)
EVENTS = OpenApiResponse(OpenApiTypes.ANY, "The events; `X-Message-ID` is the id of the question.")


@extend_schema_view(
    list=extend_schema(
        operation_id="listConversations",
        examples=examples.LISTING,
        summary="The caller's conversations, most recently updated first",
        parameters=[*PAGE(limit=20, most=100), OpenApiParameter("influencer_id", OpenApiTypes.STR)],
        responses={200: ConversationPageSerializer, **errors("limit_out_of_range")},
    ),
    create=extend_schema(
        operation_id="createConversation",
        examples=examples.OPENING,
        summary="Open the caller's conversation with a persona",
        description="201 also when it exists already, then with the same id.",
        request=OpenConversationSerializer,
        responses={201: ConversationSerializer, **errors(*BODY, "no_influencer", "no_influencer_id")},
    ),
    destroy=extend_schema(
        operation_id="deleteConversation",
        examples=examples.DELETING,
        summary="Delete a conversation with all its messages",
        parameters=[ID("conversation_id")],
        responses={200: DeletedSerializer, **errors("not_yours", "no_conversation")},
    ),
)
class ConversationViewSet(GenericViewSet[Conversation]):
    tag = "Conversations"
    queryset = Conversation.objects.none()
    serializer_class = OpenConversationSerializer

    def list(self, request: Request) -> Response:
        page = page_of(request, limit=20, most=100)
        mine = Conversation.objects.owned_by(caller_id(request))
        if influencer_id := request.query_params.get("influencer_id"):
            if "\x00" in influencer_id:
                raise invalid_query("influencer_id", "Null characters are not allowed.", "null_characters_not_allowed")
            mine = mine.filter(influencer=influencer_id)
            rows = conversation_rows(mine.latest_first())[page.offset : page.end]
        else:
            rows = listed(page)(caller_id(request))
        return Response(
            {
                "conversations": conversations_json(rows, base_url(request)),
                "total": mine.count(),
                "limit": page.limit,
                "offset": page.offset,
            }
        )

    def create(self, request: Request) -> Response:
        body = OpenConversationSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        conversation, greeting = services.open_conversation(
            influencer_id=body.validated_data["influencer_id"], user_id=caller_id(request)
        )
        return Response(opened_json(conversation, greeting, base_url(request)), status=201)

    def destroy(self, request: Request, conversation_id: str) -> Response:
        deleted, messages = services.delete_conversation(conversation_id=conversation_id, user_id=caller_id(request))
        return Response(
            {
                "success": True,
                "message": "Conversation deleted successfully",
                "deleted_conversation_id": deleted,
                "deleted_messages_count": messages,
            }
        )


@extend_schema_view(
    list=extend_schema(
        operation_id="listMessages",
        examples=examples.READING,
        summary="A page of a conversation's messages",
        parameters=[
            ID("conversation_id"),
            *PAGE(limit=50, most=200),
            OpenApiParameter("order", OpenApiTypes.STR, enum=["asc", "desc"], default="desc"),
        ],
        responses={
            200: MessagePageSerializer,
            **errors("not_yours", "no_conversation", "limit_out_of_range", "wrong_order"),
        },
    ),
    create=extend_schema(
        operation_id="sendMessage",
        examples=examples.SENDING,
        summary="Send a message and get the persona's answer",
        description="When the model is down the question is kept; the same body sent again continues it.",
        parameters=[ID("conversation_id"), IDEMPOTENCY_KEY, SCENE],
        request=SendMessageSerializer,
        responses={200: TurnSerializer, **errors(*SENDING)},
    ),
)
class MessageViewSet(GenericViewSet[Conversation]):
    tag = "Messages"
    limited_as = {"create": "model", "stream": "model", "regenerate": "model"}
    queryset = Conversation.objects.none()
    serializer_class = SendMessageSerializer

    def list(self, request: Request, conversation_id: str) -> Response:
        page = page_of(request, limit=50, most=200)
        order = one_of(request, "order", "desc", ("asc", "desc"))
        conversation = get_owned(conversation_id, caller_id(request))
        return Response(
            {
                "conversation_id": conversation.pk,
                "messages": messages_page(
                    conversation, offset=page.offset, limit=page.limit, order=order, base_url=base_url(request)
                ),
                "total": conversation.message_count,
                "limit": page.limit,
                "offset": page.offset,
            }
        )

    def create(self, request: Request, conversation_id: str) -> Response:
        draft = self._draft(request)
        with ai.playing(scene_of(request)):
            turn = services.send_message(conversation_id=conversation_id, user_id=caller_id(request), draft=draft)
        return Response(turn_json(turn, base_url(request)))

    @extend_schema(
        operation_id="streamMessage",
        examples=examples.STREAMING,
        summary="Send a message and get the persona's answer as it is written",
        description=STREAM,
        parameters=[ID("conversation_id"), IDEMPOTENCY_KEY, SCENE],
        request=SendMessageSerializer,
        responses={(200, "text/event-stream"): EVENTS, **errors(*STREAMING)},
    )
    def stream(self, request: Request, conversation_id: str) -> StreamingHttpResponse:
        draft = self._draft(request)
        with ai.playing(scene_of(request)):
            live = services.stream_message(conversation_id=conversation_id, user_id=caller_id(request), draft=draft)
        return event_stream(request, live)

    @extend_schema(
        operation_id="followTurn",
        examples=examples.FOLLOWING,
        summary="Join an answer that is being written, or replay one that was",
        description=STREAM,
        parameters=[ID("conversation_id"), ID("question_id"), LAST_EVENT_ID],
        responses={
            (200, "text/event-stream"): EVENTS,
            **errors("not_yours", "no_conversation", "no_message", "wrong_event"),
        },
    )
    def follow(self, request: Request, conversation_id: str, question_id: str) -> StreamingHttpResponse:
        after = last_event_of(request, question_id)
        live = services.follow_turn(
            conversation_id=conversation_id, user_id=caller_id(request), question_id=question_id
        )
        return event_stream(request, live, after)

    @extend_schema(
        operation_id="stopTurn",
        examples=examples.STOPPING,
        summary="Stop an answer: the text so far is kept",
        description="Without any text yet nothing is stored. A turn that has ended stays as it is.",
        parameters=[ID("conversation_id"), ID("question_id")],
        request=None,
        responses={200: StoppedTurnSerializer, **errors("not_yours", "no_conversation", "no_message", "model_down")},
    )
    def stop(self, request: Request, conversation_id: str, question_id: str) -> Response:
        turn = services.stop_turn(conversation_id=conversation_id, user_id=caller_id(request), question_id=question_id)
        return Response(stopped_json(turn, base_url(request)))

    @extend_schema(
        operation_id="regenerateAnswer",
        examples=examples.REGENERATING,
        summary="Replace the last answer by another one",
        description="If the model is down the old one stays.",
        parameters=[ID("conversation_id"), ID("question_id"), SCENE],
        request=None,
        responses={
            200: TurnSerializer,
            **errors(
                "not_yours",
                "no_conversation",
                "no_influencer",
                "no_message",
                "not_the_last_message",
                "turn_in_progress",
                "stopped",
                "away",
                "unknown_scene",
                "model_down",
            ),
        },
    )
    def regenerate(self, request: Request, conversation_id: str, question_id: str) -> Response:
        with ai.playing(scene_of(request)):
            turn = services.regenerate_answer(
                conversation_id=conversation_id, user_id=caller_id(request), question_id=question_id
            )
        return Response(turn_json(turn, base_url(request)))

    def _draft(self, request: Request) -> Draft:
        body = SendMessageSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        return body.draft(base_url(request), idempotency_key_of(request))


def idempotency_key_of(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 255 or not (key.isascii() and key.isprintable()):
        raise Invalid("Up to 255 printable ASCII characters are a key.", loc=["header", "Idempotency-Key"])
    return key or None


def scene_of(request: Request) -> str:
    """What the failure simulator shall play; blank: nothing."""
    scene = request.headers.get("X-Chat-Scenario", "").strip()
    if scene and settings.PRODUCTION:
        raise Invalid("The failure simulator works in development and staging only.", loc=["header", "X-Chat-Scenario"])
    if scene and scene not in ai.scenes():
        raise Invalid(f"One of: {', '.join(ai.scenes())}.", loc=["header", "X-Chat-Scenario"])
    return scene


def last_event_of(request: Request, question_id: str) -> int:
    """The number in Last-Event-ID, which must be of this turn."""
    given = request.headers.get("Last-Event-ID", "").strip()
    if not given:
        return 0
    known = EVENT_ID.fullmatch(given)
    if not known or known[1].lower() != question_id.lower():
        raise Invalid("This is no event of this turn.", loc=["header", "Last-Event-ID"])
    return int(known[2])


def event_stream(request: Request, live: Live, after: int = 0) -> StreamingHttpResponse:
    """Django collects an iterator of the other kind before it sends any of it: so a sync one for WSGI, and an async
    one for ASGI."""
    base = base_url(request)
    follower = Follower(live, lambda turn: done_json(turn, base), after)
    events = aiter(follower) if isinstance(request._request, ASGIRequest) else iter(follower)
    release_connection()
    headers = {
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "X-Message-ID": str(live.question_id),
    }
    return StreamingHttpResponse(events, content_type="text/event-stream", headers=headers)
