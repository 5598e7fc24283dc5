"""The production server: processes with many threads each. A waiting model call costs a thread and nothing else.

Reads the same settings as the service, so that a bad one stops the start here, with one sentence.
"""

import os
import resource

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")

import django  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.checks import ERROR, run_checks  # noqa: E402

django.setup()
if problems := [f"{found.msg} {found.hint or ''}" for found in run_checks() if found.level >= ERROR]:
    raise SystemExit(f"Yral AI Chat can't start: {' '.join(problems)}")

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
accesslog = "-" if settings.DEVELOPMENT else None
access_log_format = "%(m)s %(U)s %(s)s %(M)s ms"
loglevel = "warning" if settings.DEVELOPMENT else "info"
control_socket_disable = True


def on_starting(server: object) -> None:
    """Each thread may hold a client's socket, the model's and two database files: the usual 1,024 are too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * settings.WEB_THREADS + 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(most, wanted), most))
