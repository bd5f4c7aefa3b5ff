"""Answers to requests with an Idempotency-Key. A new table only: nothing existing is locked."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0004_triggers"),
    ]

    operations = [
        migrations.CreateModel(
            name="IdempotentCall",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.CharField(max_length=64)),
                ("caller", models.CharField(max_length=64)),
                ("bot_id", models.CharField(max_length=64)),
                ("key_digest", models.BinaryField()),
                ("request_digest", models.BinaryField()),
                ("created", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("until", models.DateTimeField()),
                ("answer", models.BinaryField(null=True)),
            ],
            options={
                "indexes": [models.Index(fields=["created"], name="bots_idempotentcall_age")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "caller", "bot_id", "key_digest"), name="bots_idempotentcall_key"
                    )
                ],
            },
        ),
    ]
