import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
application = get_wsgi_application()

from yral_chat.startup import warm_up  # noqa: E402  settings first

warm_up()
