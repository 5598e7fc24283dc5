from django.db import migrations

# group → model → permissions, with the names that Django gives them
GROUPS = {
    "Content editors": {
        "personas.influencer": {name: f"Can {name} persona" for name in ("add", "change", "view")},
    },
    "Publishers": {
        "personas.influencer": {
            **{name: f"Can {name} persona" for name in ("add", "change", "view")},
            "publish": "Can publish, roll back, activate and retire personas",
        },
    },
    "Support": {
        "conversations.conversation": {"view": "Can view conversation"},
        "conversations.message": {"view": "Can view message"},
        "conversations.turn": {"view": "Can view turn"},
        "media_uploads.mediaupload": {"view": "Can view media upload"},
    },
    "Analysts": {"conversations.turn": {"view_statistics": "Can see the statistics"}},
}
OLDER = {"Content editors"}  # personas.0002_content_editors makes it, and takes it away


def permissions_of(apps, rights):
    """Made here where they are missing: Django makes its own only after all migrations."""
    for label, named in rights.items():
        app, model = label.split(".")
        kind, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(app_label=app, model=model)
        for action, name in named.items():
            codename = action if "_" in action else f"{action}_{model}"
            yield apps.get_model("auth", "Permission").objects.get_or_create(
                content_type=kind, codename=codename, defaults={"name": name}
            )[0]


def add_groups(apps, schema_editor):
    """Only adds: what an operator put into a group of this name stays."""
    for name, rights in GROUPS.items():
        group, _ = apps.get_model("auth", "Group").objects.get_or_create(name=name)
        group.permissions.add(*permissions_of(apps, rights))


def remove_groups(apps, schema_editor):
    """Takes back what it gave. A group with members, or with other rights, stays."""
    for name in GROUPS.keys() - OLDER:
        for group in apps.get_model("auth", "Group").objects.filter(name=name):
            group.permissions.remove(*permissions_of(apps, GROUPS[name]))
            if not group.permissions.exists() and not group.user_set.exists():
                group.delete()


class Migration(migrations.Migration):
    dependencies = [
        ("conversations", "0006_versions_of_answers"),
        ("personas", "0002_content_editors"),
        ("media_uploads", "0001_media_uploads"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [migrations.RunPython(add_groups, remove_groups)]
