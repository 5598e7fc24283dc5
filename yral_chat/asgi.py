import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
application = get_asgi_application()

from django.conf import settings  # noqa: E402

from yral_chat.startup import warm_up  # noqa: E402

# Under ASGI each request has a thread of its own, which dies with it: a connection that is kept would be lost.
settings.DATABASES["default"]["CONN_MAX_AGE"] = 0
warm_up()
