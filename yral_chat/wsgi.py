import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
application = get_wsgi_application()

from yral_chat.checks import refuse_to_start  # noqa: E402  settings first
from yral_chat.startup import warm_up  # noqa: E402

os.environ.pop("SCRIPT_NAME", None)  # gunicorn reads it too, and answers 500 to every path without it
refuse_to_start()
warm_up()
