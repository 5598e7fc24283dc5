from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from conversations import services
from conversations.models import Conversation, get_owned
from conversations.serializers import (
    ConversationPageSerializer,
    ConversationSerializer,
    DeletedSerializer,
    MessagePageSerializer,
    OpenConversationSerializer,
    SendMessageSerializer,
    TurnSerializer,
    conversation_rows,
    conversations_json,
    listed,
    messages_page,
    opened_json,
    turn_json,
)
from yral_chat.authentication import caller_id
from yral_chat.errors import invalid_query
from yral_chat.pagination import base_url, one_of, page_of
from yral_chat.schema import ID, PAGE, errors


@extend_schema_view(
    list=extend_schema(
        operation_id="listConversations",
        summary="The caller's conversations, most recently updated first",
        parameters=[*PAGE(limit=20, most=100), OpenApiParameter("influencer_id", OpenApiTypes.STR)],
        responses={200: ConversationPageSerializer, **errors(401, 422)},
    ),
    create=extend_schema(
        operation_id="createConversation",
        summary="Open the caller's conversation with a persona",
        description="201 also when it exists already, then with the same id.",
        request=OpenConversationSerializer,
        responses={201: ConversationSerializer, **errors(400, 401, 404, 413, 415, 422)},
    ),
    destroy=extend_schema(
        operation_id="deleteConversation",
        summary="Delete a conversation with all its messages",
        parameters=[ID("conversation_id")],
        responses={200: DeletedSerializer, **errors(401, 403, 404)},
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
        summary="A page of a conversation's messages",
        parameters=[
            ID("conversation_id"),
            *PAGE(limit=50, most=200),
            OpenApiParameter("order", OpenApiTypes.STR, enum=["asc", "desc"], default="desc"),
        ],
        responses={200: MessagePageSerializer, **errors(401, 403, 404, 422)},
    ),
    create=extend_schema(
        operation_id="sendMessage",
        summary="Send a message and get the persona's answer",
        description="When the model is down the question is kept; the same body sent again continues it.",
        parameters=[ID("conversation_id")],
        request=SendMessageSerializer,
        responses={200: TurnSerializer, **errors(400, 401, 403, 404, 413, 415, 422, 503)},
    ),
)
class MessageViewSet(GenericViewSet[Conversation]):
    tag = "Messages"
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
        body = SendMessageSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        turn = services.send_message(
            conversation_id=conversation_id, user_id=caller_id(request), draft=body.draft(base_url(request))
        )
        return Response(turn_json(turn.question, turn.answer, base_url(request)))
