"""From here on the database has the views of analytics.py. `migrate` makes them after its last migration, and going back
behind this one leaves none; the reason is told there."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("conversations", "0003_turns_of_earlier_questions"), ("personas", "0002_content_editors")]

    operations = []
