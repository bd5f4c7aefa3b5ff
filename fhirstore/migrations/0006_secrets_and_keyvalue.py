"""Secrets of Projects and Bots, encrypted, and texts of profiles. New tables only."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("fhirstore", "0005_pending_file"),
    ]

    operations = [
        migrations.CreateModel(
            name="KeyValue",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.UUIDField()),
                ("owner", models.CharField(max_length=200)),
                ("key", models.CharField(max_length=500)),
                ("value", models.TextField()),
                ("updated", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "owner", "key"), name="fhirstore_keyvalue_once"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Secret",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.UUIDField()),
                ("owner", models.CharField(max_length=128)),
                ("kind", models.CharField(max_length=16)),
                ("name", models.TextField()),
                ("value", models.BinaryField()),
                ("updated", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "owner", "kind", "name"), name="fhirstore_secret_once"
                    )
                ],
            },
        ),
    ]
