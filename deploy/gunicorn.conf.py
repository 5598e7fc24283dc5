"""The production server: processes with many threads each. A waiting model call costs a thread and nothing else.

Reads the same settings as the service, so that a bad one stops the start here, with one sentence.
"""

import os
import resource

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")

import django  # noqa: E402
from django.conf import settings  # noqa: E402

django.setup()

from yral_chat.checks import refuse_to_start  # noqa: E402

refuse_to_start()

wsgi_app = "yral_chat.wsgi"
bind = f"[{settings.HOST}]:{settings.PORT}" if ":" in settings.HOST else f"{settings.HOST}:{settings.PORT}"
worker_class = "gthread"
workers = settings.WEB_CONCURRENCY
threads = settings.WEB_THREADS
worker_connections = max(1000, 4 * settings.WEB_THREADS)
backlog = 4096
timeout = 60  # without a sign of life of the process itself; waiting threads don't count
graceful_timeout = 30
keepalive = 75
preload_app = not settings.DEVELOPMENT
reload = settings.DEVELOPMENT
errorlog = "-"
accesslog = None  # the service logs its requests itself
loglevel = "warning" if settings.DEVELOPMENT else "info"
control_socket_disable = True


def on_starting(server: object) -> None:
    """Each thread may hold a client's socket, the model's and two database files: the usual 1,024 are too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * settings.WEB_THREADS + 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(most, wanted), most))
