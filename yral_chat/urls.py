"""Every address of the service."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.urls import path, re_path
from django.views.decorators.csp import csp_override
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
from yral_chat import browsable
from yral_chat.errors import absent_unless
from yral_chat.operations import HealthView, MetricsView, NotFoundView, RootView, StatusView
from yral_chat.try_page import gives_tokens, try_page, try_token

api: list[tuple[str, type[ViewSetMixin], dict[str, Any]]] = [
    ("influencers", InfluencerViewSet, {"get": "list"}),
    ("influencers/<str:influencer_id>", InfluencerViewSet, {"get": "retrieve"}),
    ("media/upload", MediaUploadViewSet, {"post": "create"}),
    ("chat/conversations", ConversationViewSet, {"get": "list", "post": "create"}),
    ("chat/conversations/<str:conversation_id>", ConversationViewSet, {"delete": "destroy"}),
    ("chat/conversations/<str:conversation_id>/messages", MessageViewSet, {"get": "list", "post": "create"}),
    ("chat/conversations/<str:conversation_id>/messages/stream", MessageViewSet, {"post": "stream"}),
    ("chat/conversations/<str:conversation_id>/messages/<str:question_id>/stream", MessageViewSet, {"get": "follow"}),
    ("chat/conversations/<str:conversation_id>/messages/<str:question_id>/stop", MessageViewSet, {"post": "stop"}),
    (
        "chat/conversations/<str:conversation_id>/messages/<str:question_id>/regenerate",
        MessageViewSet,
        {"post": "regenerate"},
    ),
]

in_development = absent_unless(lambda: settings.DEVELOPMENT)
redoc = SpectacularRedocView.as_view(url_name="openapi", template_name="redoc.html")
urlpatterns = [
    path("", RootView.as_view(), name="root"),
    path("health", HealthView.as_view()),
    path("status", StatusView.as_view()),
    path("metrics", MetricsView.as_view()),
    *(path(f"api/v1/{route}", view.as_view(methods)) for route, view, methods in api),
    path("openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    path("openapi.yaml", SpectacularYAMLAPIView.as_view()),
    path("docs", SpectacularSwaggerView.as_view(url_name="openapi", template_name="docs.html"), name="docs"),
    path("redoc", csp_override(dict[str, list[str]](settings.REDOC_CSP))(redoc)),
    path("try", csp_override(dict[str, list[str]](settings.TRY_CSP))(try_page), name="try"),
    path("try/token", absent_unless(gives_tokens)(try_token), name="try_token"),
    path("browse/login", in_development(browsable.log_in), name="browse_login"),
    path("browse/logout", in_development(browsable.log_out), name="browse_logout"),
    path("media/<path:key>", media_file),
    path(settings.ADMIN_PATH.rstrip("/"), RedirectView.as_view(pattern_name="admin:index")),
    path(settings.ADMIN_PATH, admin.site.urls),
    re_path("", NotFoundView.as_view(), name="unmatched"),
]

handler400 = "yral_chat.errors.bad_request"
handler403 = "yral_chat.errors.forbidden"
handler404 = "yral_chat.errors.not_found"
handler500 = "yral_chat.errors.server_error"
