from django.db import migrations

GROUP, CODENAME = "Support", "explain_message"


def give(apps, schema_editor):
    """They read the conversations and what the model was sent anyway. A group that an operator took away stays away."""
    permission = apps.get_model("auth", "Permission").objects.get(
        content_type__app_label="conversations", codename=CODENAME
    )
    for group in apps.get_model("auth", "Group").objects.filter(name=GROUP):
        group.permissions.add(permission)


def take_back(apps, schema_editor):
    for group in apps.get_model("auth", "Group").objects.filter(name=GROUP):
        group.permissions.remove(*group.permissions.filter(codename=CODENAME))


class Migration(migrations.Migration):
    dependencies = [("conversations", "0012_test_sets")]

    operations = [migrations.RunPython(give, take_back)]
