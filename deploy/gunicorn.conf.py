"""The production server: processes with many threads each. A waiting model call costs a thread and nothing else.

Reads the same settings as the service, so that a bad one stops the start here, with one sentence. Signals to the first
process: TERM stops it when the answers under way are given, HUP loads new code and settings without losing a request.
"""

import os
import resource
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")

import django  # noqa: E402
from django.conf import settings  # noqa: E402

django.setup()

from yral_chat import metric_files  # noqa: E402
from yral_chat.checks import refuse_to_start  # noqa: E402
from yral_chat.gunicorn import (  # noqa: E402, F401  the server calls them
    Worker,
    dismiss_earlier_workers,
    on_exit,
    when_ready,
)
from yral_chat.gunicorn import child_exit as worker_ended  # noqa: E402
from yral_chat.startup import serve  # noqa: E402

refuse_to_start()

wsgi_app = "yral_chat.wsgi"
bind = f"[{settings.HOST}]:{settings.PORT}" if ":" in settings.HOST else f"{settings.HOST}:{settings.PORT}"
worker_class = Worker
workers = settings.WEB_CONCURRENCY
# A turn holds its thread while the model thinks, and a stream while it lasts: a process serves as many of them at once
# as it has threads. A thread is made when it's needed and costs some 100 KB; the work of all goes through one GIL, so
# that more processes than cores help no more than more threads do.
threads = settings.WEB_THREADS
worker_connections = max(1000, 4 * settings.WEB_THREADS)
backlog = 4096
# A thread that waits doesn't count: the process gives a sign of life every second, from the thread that accepts. Sixty
# without one mean that it hangs as a whole.
timeout = 60
# Nothing waits that long unless a stream does. It must be less than what the orchestrator gives before it kills.
graceful_timeout = settings.GRACEFUL_TIMEOUT
keepalive = 75  # longer than nginx keeps its connections (60), so that it is nginx that closes them
max_requests = settings.WEB_MAX_REQUESTS
max_requests_jitter = settings.WEB_MAX_REQUESTS // 5  # so that they don't all start anew at once
preload_app = not settings.DEVELOPMENT
reload = settings.DEVELOPMENT
errorlog = "-"
accesslog = None  # the service logs its requests itself
loglevel = "warning" if settings.DEVELOPMENT else "info"
control_socket_disable = True
# gunicorn believes proxies of this machine, and unix sockets, by itself; here yral_chat/proxies.py alone decides.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
logger_class = "yral_chat.gunicorn_log.ServiceLogger"


def on_starting(server: object) -> None:
    """Each thread may hold a client's socket, the model's and two database files: the usual 1,024 are too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * settings.WEB_THREADS + 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(most, wanted), most))
    metric_files.claim_folder()


def child_exit(server: Any, worker: Any) -> None:
    worker_ended(server, worker)
    metric_files.process_ended()


def post_worker_init(worker: object) -> None:
    serve()
    dismiss_earlier_workers()
