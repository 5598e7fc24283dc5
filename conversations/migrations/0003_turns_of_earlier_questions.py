"""Every question has a turn: here those that were asked before there were any."""

from django.db import migrations
from django.db.models import Exists, OuterRef

BATCH = 1000


def give_each_question_a_turn(apps, schema_editor):
    Message = apps.get_model("conversations", "Message")
    Turn = apps.get_model("conversations", "Turn")
    answers = Message.objects.filter(in_reply_to=OuterRef("pk"))
    questions = Message.objects.filter(role="user", turn=None).annotate(
        answered=Exists(answers), was_blocked=Exists(answers.filter(blocked=True))
    )
    rows = questions.order_by("pk").values_list("pk", "conversation_id", "created_at", "answered", "was_blocked")
    batch = list(rows[:BATCH])
    while batch:
        Turn.objects.bulk_create(
            Turn(
                question_id=pk,
                conversation_id=conversation,
                created_at=created,
                finished_at=created,
                state="blocked" if blocked else "done" if answered else "failed",
                error_code="" if answered else "interrupted",
            )
            for pk, conversation, created, answered, blocked in batch
        )
        batch = list(rows.filter(pk__gt=batch[-1][0])[:BATCH])


class Migration(migrations.Migration):
    dependencies = [("conversations", "0002_turns")]

    operations = [migrations.RunPython(give_each_question_a_turn, migrations.RunPython.noop)]
