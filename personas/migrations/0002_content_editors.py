from django.db import migrations

GROUP = "Content editors"


def add_group(apps, schema_editor):
    """They edit personas and see no chats. Permissions are made here: Django makes its own only after all migrations."""
    kind, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label="personas", model="influencer"
    )
    group, _ = apps.get_model("auth", "Group").objects.get_or_create(name=GROUP)
    for action in ("add", "change", "view"):
        permission, _ = apps.get_model("auth", "Permission").objects.get_or_create(
            content_type=kind, codename=f"{action}_influencer", defaults={"name": f"Can {action} influencer"}
        )
        group.permissions.add(permission)


def remove_group(apps, schema_editor):
    apps.get_model("auth", "Group").objects.filter(name=GROUP).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("personas", "0001_influencers"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [migrations.RunPython(add_group, remove_group)]
