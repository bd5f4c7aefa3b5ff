"""Attempts of a delivery that a replay forgives. Adds a column with a constant default: no table is rewritten."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0005_idempotentcall"),
    ]

    operations = [
        migrations.AddField(
            model_name="delivery",
            name="forgiven",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
    ]
