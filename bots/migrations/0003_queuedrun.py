"""Runs that wait to be done in the background. A new table only: nothing existing is locked."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0002_claim"),
    ]

    operations = [
        migrations.CreateModel(
            name="QueuedRun",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("project", models.CharField(max_length=64)),
                ("bot_id", models.CharField(max_length=64)),
                ("request", models.TextField()),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("due", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("lease", models.PositiveIntegerField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("lease", None)),
                        fields=["project", "id"],
                        name="bots_queuedrun_claimable",
                    ),
                    models.Index(
                        condition=models.Q(("lease__isnull", False)),
                        fields=["lease", "project"],
                        name="bots_queuedrun_lease",
                    ),
                ],
            },
        ),
    ]
