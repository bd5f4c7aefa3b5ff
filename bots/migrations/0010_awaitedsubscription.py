"""Subscriptions over WebSocket that are erased when nobody listens. A new table only: nothing existing is locked."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0009_wheel"),
    ]

    operations = [
        migrations.CreateModel(
            name="AwaitedSubscription",
            fields=[
                ("subscription_id", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("project", models.CharField(max_length=64)),
                ("until", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["until"], name="bots_awaitedsubscription_until")],
            },
        ),
    ]
