import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from conversations.services import open_conversation
from personas.models import Influencer
from yral_chat.checks import unapplied_migrations
from yral_chat.management.commands.issue_token import token_for

USER = "demo-user"
DAY = 86400

GUIDE = """
  Yral AI Chat runs here ({engine}):

    Chat       {base}/try
    API docs   {base}/docs   {base}/redoc
    Admin      {base}/{admin}   {login}

  Paste into a shell. List the personas:

curl -s '{base}/api/v1/influencers' -H 'Authorization: Bearer {token}'

  Open a conversation with {persona}:

curl -s -X POST '{base}/api/v1/chat/conversations' {headers} -d '{{"influencer_id": "{influencer}"}}'

  Send a message and get the answer:

curl -s -X POST '{messages}' {headers} -d '{{"message_type": "text", "content": "Hello! What can you do?"}}'

  Another token: .venv/bin/python manage.py issue_token USER. Stop with Ctrl+C.
"""


class Command(BaseCommand):
    help = "What `make run` does before serving: migrate, seed, make a staff login, and say how to use it all."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEVELOPMENT:
            raise CommandError("Only with ENVIRONMENT=development: this makes a staff login and prints it.")
        if unapplied_migrations():
            call_command("migrate", verbosity=0)
        call_command("seed_personas")
        self.stdout.write(self.guide())

    def guide(self) -> str:
        influencer = Influencer.objects.active().as_listed().first()
        if influencer is None:
            raise CommandError("No persona is active. Activate one in the admin, or run: manage.py seed_personas")
        conversation, _ = open_conversation(influencer_id=influencer.pk, user_id=USER)
        host = "127.0.0.1" if settings.HOST in ("0.0.0.0", "::") else settings.HOST  # noqa: S104
        base = f"http://{host}:{settings.PORT}"
        token = token_for(USER, 30 * DAY) if settings.JWT_SECRET_KEY else "<a token of your login service>"
        return GUIDE.format(
            base=base,
            admin=settings.ADMIN_PATH,
            engine=settings.GEMINI_MODEL if settings.GEMINI_API_KEY else "no GEMINI_API_KEY: offline answers",
            login=self.staff_login(),
            token=token,
            headers=f"-H 'Authorization: Bearer {token}' -H 'Content-Type: application/json'",
            persona=influencer.display_name,
            influencer=influencer.pk,
            messages=f"{base}/api/v1/chat/conversations/{conversation.pk}/messages",
        )

    def staff_login(self) -> str:
        """User admin with a random password, which is kept in data/ so that it can be said again tomorrow."""
        kept = settings.BASE_DIR / "data" / "development-login.txt"
        password = kept.read_text(encoding="utf-8").strip() if kept.is_file() else secrets.token_urlsafe(9)
        admin = User.objects.filter(username="admin").first() or User.objects.create_superuser("admin", "", password)
        if not admin.check_password(password):
            return "user: admin   password: the one that you chose"
        kept.parent.mkdir(exist_ok=True)
        kept.touch(mode=0o600)
        kept.write_text(password, encoding="utf-8")
        return f"user: admin   password: {password}"
