"""Every address of the service."""

from typing import Any

from django.contrib import admin
from django.urls import path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import (
    SpectacularJSONAPIView,
    SpectacularRedocView,
    SpectacularSwaggerView,
    SpectacularYAMLAPIView,
)
from rest_framework.viewsets import ViewSetMixin

from conversations.views import ConversationViewSet, MessageViewSet
from media_uploads.views import MediaUploadViewSet, media_file
from personas.views import InfluencerViewSet
from yral_chat.operations import HealthView, NotFoundView, RootView, StatusView

admin.site.site_header = admin.site.site_title = "Yral AI Chat"
admin.site.index_title = "Personas and conversations"
admin.site.site_url = "/docs"

api: list[tuple[str, type[ViewSetMixin], dict[str, Any]]] = [
    ("influencers", InfluencerViewSet, {"get": "list"}),
    ("influencers/<str:influencer_id>", InfluencerViewSet, {"get": "retrieve"}),
    ("media/upload", MediaUploadViewSet, {"post": "create"}),
    ("chat/conversations", ConversationViewSet, {"get": "list", "post": "create"}),
    ("chat/conversations/<str:conversation_id>", ConversationViewSet, {"delete": "destroy"}),
    ("chat/conversations/<str:conversation_id>/messages", MessageViewSet, {"get": "list", "post": "create"}),
]

urlpatterns = [
    path("", RootView.as_view()),
    path("health", HealthView.as_view()),
    path("status", StatusView.as_view()),
    *(path(f"api/v1/{route}", view.as_view(methods)) for route, view, methods in api),
    path("openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    path("openapi.yaml", SpectacularYAMLAPIView.as_view()),
    path("docs", SpectacularSwaggerView.as_view(url_name="openapi"), name="docs"),
    path("redoc", SpectacularRedocView.as_view(url_name="openapi", template_name="redoc.html")),
    path("media/<path:key>", media_file),
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    re_path("", NotFoundView.as_view()),
]

handler400 = "yral_chat.errors.bad_request"
handler403 = "yral_chat.errors.forbidden"
handler404 = "yral_chat.errors.not_found"
handler500 = "yral_chat.errors.server_error"
