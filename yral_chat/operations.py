"""What the service says of itself: /, /health, /status, and to its operators /metrics. No model call."""

import hmac
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Count, Sum
from django.http import HttpResponse
from django.http.request import split_domain_port
from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from conversations.models import Conversation
from media_uploads import storage
from personas.models import Influencer
from yral_chat import ai, dependencies, metrics, replication
from yral_chat.errors import NotFound
from yral_chat.json import FastJSONRenderer
from yral_chat.schema import Object

STARTED = time.monotonic()
STATUS_FOR = 3.0  # seconds that /status may be old
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
PATIENCE = 2.0  # seconds that who asks for the health of the database waits
A_ROW = "SELECT 1 FROM django_migrations LIMIT 1"  # to say a constant, SQLite reads no page
NOTHING = ("total_conversations", "total_messages", "active_influencers")


class PublicView(APIView):
    tag = "Operations"
    authentication_classes = ()
    permission_classes = ()


def is_operator(request: Any) -> bool:
    """Who shows METRICS_TOKEN; where there is none, who calls from this machine, by its own name, and through no proxy
    as far as that can be told: one that sets no header and passes on its clients' Host looks like its clients. Who
    comes through a unix socket has no address and needs the token."""
    if settings.METRICS_TOKEN:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
        given, expected = token.strip().encode(errors="replace"), settings.METRICS_TOKEN.encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given, expected)
    host, _ = split_domain_port(request.META.get("HTTP_HOST", ""))
    return request.is_direct and host in LOCAL_HOSTS and _is_loopback(request.META.get("REMOTE_ADDR", ""))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


STATES = ["up", "down"]
OVERALL = ["healthy", "unhealthy"]


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
    status = serializers.ChoiceField(choices=STATES)
    latency_ms = serializers.FloatField()
    error = serializers.CharField(allow_null=True)


class ServicesSerializer(Object):
    database = ServiceHealthSerializer()
    gemini_api = ServiceHealthSerializer()


class HealthSerializer(Object):
    status = serializers.ChoiceField(choices=OVERALL)
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
                "docs": f"{settings.SCRIPT_NAME}/docs",
                "redoc": f"{settings.SCRIPT_NAME}/redoc",
                "openapi": f"{settings.SCRIPT_NAME}/openapi.json",
                "health": f"{settings.SCRIPT_NAME}/health",
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
        model = ai.health()
        needed = {"database": database_health()}
        if request.query_params.get("deep") == "1" and is_operator(request._request):
            needed |= deep_health()
        healthy = all(service["status"] != "down" for service in needed.values())
        known = {"gemini_api": dependencies.shown(model.error, latency_ms=model.latency_ms)}
        return Response(
            {
                "status": "healthy" if healthy else "unhealthy",
                "timestamp": timezone.now(),
                "services": needed | known,
            },
            status=200 if healthy else 503,
        )


class StatusView(PublicView):
    @extend_schema(operation_id="systemStatus", summary="Version, uptime and counts", responses=StatusSerializer)
    def get(self, request: Request) -> Response:
        counted = _counted()
        return Response(
            {
                "service": settings.APP_NAME,
                "version": settings.APP_VERSION,
                "environment": settings.ENVIRONMENT,
                "uptime_seconds": round(time.monotonic() - STARTED, 3),
                **counted,
                "timestamp": timezone.now(),
            }
        )


class MetricsView(PublicView):
    """For Prometheus. Who may not see it finds nothing here."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if not (settings.METRICS_ENABLED and is_operator(request._request)):
            raise NotFound

    def get(self, request: Request) -> HttpResponse:
        publish_database()
        return HttpResponse(metrics.exposition(seen_now), content_type="text/plain; version=0.0.4; charset=utf-8")


class NotFoundView(PublicView):
    """Every address that nothing else answers, with any method."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NotFound


def deep_health() -> dict[str, Any]:
    return {
        "storage": dependencies.measured(storage.check),
        "cache": dependencies.cache_health(),
        "disk": dependencies.disk_health(),
        "replica": dependencies.replica_health(),
    }


def seen_now() -> Iterator[metrics.Seen]:
    """What the machine shows at this moment, whichever process looks."""
    up = int(database_health()["status"] == "up")
    version = {(settings.APP_VERSION, settings.ENVIRONMENT): 1.0}
    yield metrics.Seen("yral_chat_service", "Which version runs.", ("version", "environment"), version)
    yield metrics.Seen("yral_chat_database_up", "Does the database answer?", (), {(): up})
    sizes: dict[tuple[str, ...], float] = {}
    if (database := replication.sqlite_file()) is not None:
        sizes = {(name,): file.st_size for name, file in dependencies.sqlite_files(database).items()}
    yield metrics.Seen("yral_chat_database_file_bytes", "Size of SQLite's files.", ("file",), sizes)
    free = {(name,): float(count) for name, count in dependencies.disk_health()["free_bytes"].items()}
    yield metrics.Seen("yral_chat_disk_free_bytes", "Free on the disk of a folder.", ("folder",), free)
    replica = dependencies.replica_health()
    seconds = replica.get("behind_seconds")
    behind = {} if seconds is None else {(): seconds}
    yield metrics.Seen("yral_chat_replica_behind_seconds", "What SQLite's replica lacks. None: unknown.", (), behind)
    answers = {} if replica["status"] == "unknown" else {(): float(seconds is not None)}
    yield metrics.Seen("yral_chat_replica_answers", "Can anybody tell how late SQLite's replica is?", (), answers)
    drill = replica.get("restore_drill") or {}
    ends = {("never",): 0.0} if "restore_drill" in replica else {}
    if drill:
        ends = {(str(bool(drill["ok"])).lower(),): drill["at"]}
    yield metrics.Seen("yral_chat_restore_drill_timestamp_seconds", "When the last was, and if well.", ("ok",), ends)
    took = {(): drill["seconds"]} if drill else {}
    yield metrics.Seen("yral_chat_restore_drill_seconds", "How long a restore takes.", (), took)


def publish_database() -> None:
    if (pool := getattr(connection, "pool", None)) is not None:
        metrics.publish_pool(pool.get_stats())


_status_lock = threading.Lock()
_status: tuple[float, dict[str, Any]] | None = None


def _counted() -> dict[str, Any]:
    """What /status asks the database for, kept for STATUS_FOR seconds, failures too: anybody may ask as often as they
    like. While one waits for the database, the others don't wait for ever for that one."""
    global _status
    if not _status_lock.acquire(timeout=PATIENCE):
        return _shown_status(None)
    try:
        if _status is None or time.monotonic() - _status[0] > STATUS_FOR:
            counted = _shown_status(_statistics())
            _status = time.monotonic(), counted
        return _status[1]
    finally:
        _status_lock.release()


def _shown_status(counts: dict[str, int] | None) -> dict[str, Any]:
    return {
        "database": database_connections(connected=counts is not None),
        "statistics": counts or dict.fromkeys(NOTHING, 0),
    }


def _statistics() -> dict[str, int] | None:
    """None: the database doesn't answer, or not well."""
    if database_health()["status"] == "down":
        return None
    try:
        return statistics()
    except DatabaseError:
        connection.close()
        return None


def forget_status() -> None:
    global _status
    _status = None


def database_health() -> dict[str, Any]:
    started = time.perf_counter()
    error = None
    try:
        _read_a_row()
    except (sqlite3.Error, psycopg.Error) as exc:
        error = f"The database doesn't answer ({type(exc).__name__})."
    return dependencies.shown(error, latency_ms=round((time.perf_counter() - started) * 1000, 2))


def _read_a_row() -> None:
    """Within PATIENCE, of which a PostgreSQL pool may take a part to find a free connection: who asks /health waits no
    longer.

    Of SQLite's file by a connection of its own: those of the threads may answer from their memory, or from a file that
    was deleted. If it's the only one, closing it would move the WAL, which may be Litestream's, into the database.
    """
    pool = getattr(connection, "pool", None)
    if pool is None:
        address = f"{Path(connection.settings_dict['NAME']).absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE)) as file:
            file.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
            file.execute(A_ROW)
    else:
        pool.open()
        deadline = time.monotonic() + PATIENCE
        with pool.connection(PATIENCE) as borrowed, borrowed.waiting_at_most(max(0.1, deadline - time.monotonic())):
            borrowed.execute(A_ROW)


def database_connections(*, connected: bool) -> dict[str, Any]:
    """Of this process: the pool's on PostgreSQL; on SQLite each thread may have one."""
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
