"""What the service says of itself: /, /health, /status. No token, no model call."""

import time
from typing import Any

import psycopg
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Count, Sum
from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from conversations.models import Conversation
from personas.models import Influencer
from yral_chat import ai
from yral_chat.errors import NotFound
from yral_chat.json import FastJSONRenderer
from yral_chat.schema import Object

STARTED = time.monotonic()
NOTHING = ("total_conversations", "total_messages", "active_influencers")


class PublicView(APIView):
    tag = "Operations"
    authentication_classes = ()
    permission_classes = ()


class ServiceSerializer(Object):
    service = serializers.CharField()
    version = serializers.CharField()
    status = serializers.CharField()
    environment = serializers.CharField()
    docs = serializers.CharField()
    redoc = serializers.CharField()
    openapi = serializers.CharField()
    health = serializers.CharField()


class ServiceHealthSerializer(Object):
    status = serializers.ChoiceField(choices=["up", "down"])
    latency_ms = serializers.FloatField()
    error = serializers.CharField(allow_null=True)


class ServicesSerializer(Object):
    database = ServiceHealthSerializer()
    gemini_api = ServiceHealthSerializer()


class HealthSerializer(Object):
    status = serializers.ChoiceField(choices=["healthy", "unhealthy"])
    timestamp = serializers.DateTimeField()
    services = ServicesSerializer()


class DatabaseStatusSerializer(Object):
    connected = serializers.BooleanField()
    pool_size = serializers.IntegerField()
    active_connections = serializers.IntegerField()


class StatisticsSerializer(Object):
    total_conversations = serializers.IntegerField()
    total_messages = serializers.IntegerField()
    active_influencers = serializers.IntegerField()


class StatusSerializer(Object):
    service = serializers.CharField()
    version = serializers.CharField()
    environment = serializers.CharField()
    uptime_seconds = serializers.FloatField()
    database = DatabaseStatusSerializer()
    statistics = StatisticsSerializer()
    timestamp = serializers.DateTimeField()


class RootView(PublicView):
    @extend_schema(operation_id="serviceInfo", summary="What this is and where to read on", responses=ServiceSerializer)
    def get(self, request: Request) -> Response:
        return Response(
            {
                "service": settings.APP_NAME,
                "version": settings.APP_VERSION,
                "status": "running",
                "environment": settings.ENVIRONMENT,
                "docs": "/docs",
                "redoc": "/redoc",
                "openapi": "/openapi.json",
                "health": "/health",
            }
        )


class HealthView(PublicView):
    renderer_classes = (FastJSONRenderer,)

    @extend_schema(
        operation_id="healthCheck",
        summary="Healthy (200) or, with the database down, unhealthy (503)",
        responses={200: HealthSerializer, 503: OpenApiResponse(HealthSerializer, "The database is down.")},
    )
    def get(self, request: Request) -> Response:
        database, model = database_health(), ai.health()
        healthy = database["status"] == "up"
        return Response(
            {
                "status": "healthy" if healthy else "unhealthy",
                "timestamp": timezone.now(),
                "services": {
                    "database": database,
                    "gemini_api": _health(up=model.up, latency_ms=model.latency_ms, error=model.error),
                },
            },
            status=200 if healthy else 503,
        )


class StatusView(PublicView):
    @extend_schema(operation_id="systemStatus", summary="Version, uptime and counts", responses=StatusSerializer)
    def get(self, request: Request) -> Response:
        database = database_connections()
        return Response(
            {
                "service": settings.APP_NAME,
                "version": settings.APP_VERSION,
                "environment": settings.ENVIRONMENT,
                "uptime_seconds": round(time.monotonic() - STARTED, 3),
                "database": database,
                "statistics": statistics() if database["connected"] else dict.fromkeys(NOTHING, 0),
                "timestamp": timezone.now(),
            }
        )


class NotFoundView(PublicView):
    """Every address that nothing else answers, with any method."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NotFound


def database_health() -> dict[str, Any]:
    started = time.perf_counter()
    error = None
    try:
        _ask_database()
    except (DatabaseError, psycopg.Error) as exc:
        error = f"The database doesn't answer ({type(exc).__name__})."
        connection.close()
    return _health(up=error is None, latency_ms=round((time.perf_counter() - started) * 1000, 2), error=error)


def _ask_database() -> None:
    """Of a PostgreSQL pool without a free connection we wait 2 s for one: who asks /health waits not much longer."""
    pool = getattr(connection, "pool", None)
    if pool is None or connection.connection is not None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    else:
        pool.open()
        with pool.connection(timeout=2) as borrowed:
            borrowed.execute("SELECT 1")


def _health(*, up: bool, latency_ms: float, error: str | None) -> dict[str, Any]:
    return {"status": "up" if up else "down", "latency_ms": latency_ms, "error": error}


def database_connections() -> dict[str, Any]:
    """Of this process: the pool's on PostgreSQL; on SQLite each thread may have one."""
    connected = database_health()["status"] == "up"
    pool = getattr(connection, "pool", None)
    if pool is None:
        return {"connected": connected, "pool_size": settings.WEB_THREADS, "active_connections": int(connected)}
    stats = pool.get_stats()
    size = int(stats.get("pool_size", 0))
    return {
        "connected": connected,
        "pool_size": pool.max_size,
        "active_connections": size - int(stats["pool_available"]),
    }


def statistics() -> dict[str, int]:
    """Messages by the conversations' counters: no scan of the messages."""
    chats = Conversation.objects.aggregate(conversations=Count("id"), messages=Sum("message_count"))
    return {
        "total_conversations": chats["conversations"],
        "total_messages": chats["messages"] or 0,
        "active_influencers": Influencer.objects.active().count(),
    }
