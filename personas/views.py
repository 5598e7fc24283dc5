from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from personas.models import Influencer
from personas.serializers import (
    LISTED,
    PERSONA,
    PERSONAS,
    InfluencerPageSerializer,
    InfluencerSerializer,
    influencer_json,
    listed,
)
from yral_chat.errors import NotFound
from yral_chat.pagination import base_url, page_of
from yral_chat.schema import ID, PAGE, errors


@extend_schema_view(
    list=extend_schema(
        operation_id="listInfluencers",
        examples=[PERSONAS],
        summary="The personas, active ones first",
        parameters=PAGE(limit=50, most=100),
        responses={200: InfluencerPageSerializer, **errors("limit_out_of_range")},
    ),
    retrieve=extend_schema(
        operation_id="getInfluencer",
        examples=[PERSONA],
        summary="One active persona",
        parameters=[ID("influencer_id")],
        responses={200: InfluencerSerializer, **errors("no_influencer")},
    ),
)
class InfluencerViewSet(ViewSet):
    """Public: a token isn't needed, and a bad one isn't looked at."""

    tag = "Personas"
    authentication_classes = ()
    permission_classes = ()
    serializer_class = InfluencerSerializer

    def list(self, request: Request) -> Response:
        page = page_of(request, limit=50, most=100)
        base = base_url(request)
        return Response(
            {
                "influencers": [influencer_json(row, base) for row in listed(page)(timezone.now())],
                "total": Influencer.objects.shown().count(),
                "limit": page.limit,
                "offset": page.offset,
            }
        )

    def retrieve(self, request: Request, influencer_id: str) -> Response:
        row = Influencer.objects.active_with_id(influencer_id).values(*LISTED).first()
        if row is None:
            raise NotFound("Influencer not found")
        return Response(influencer_json(row, base_url(request)))
