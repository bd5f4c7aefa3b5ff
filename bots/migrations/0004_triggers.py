"""What sets Bots off without being called: schedules, retries, and channels that are no Bots."""

from django.db import migrations, models

# As 0002, and besides: deliveries without order, and a claimer that has enough calls to other servers under way.
CLAIM = """
DROP FUNCTION bots_claim_delivery(integer);
CREATE FUNCTION bots_claim_delivery(claimer integer, only_bots boolean) RETURNS SETOF bots_delivery LANGUAGE plpgsql
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY UPDATE bots_delivery
    SET state = 'running', lease = claimer, attempts = attempts + 1, started = clock_timestamp()
    WHERE id = (
        SELECT next.id FROM bots_delivery AS next
        WHERE next.state IN ('waiting', 'retrying') AND next.due <= clock_timestamp()
          AND NOT (only_bots AND next.bot_id = '') AND (next.unordered OR (
            SELECT true FROM bots_delivery AS earlier
            WHERE earlier.state IN ('waiting', 'running', 'retrying')
              AND earlier.subscription_id = next.subscription_id AND earlier.resource_type = next.resource_type
              AND earlier.resource_id = next.resource_id AND earlier.change_id < next.change_id LIMIT 1) IS NULL)
        ORDER BY next.change_id, next.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *;
END $$
"""


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0003_queuedrun"),
    ]

    operations = [
        migrations.CreateModel(
            name="Schedule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("project", models.CharField(max_length=64)),
                ("owner_type", models.CharField(max_length=8)),
                ("owner_id", models.CharField(max_length=64)),
                ("bot_id", models.CharField(max_length=64)),
                ("expression", models.CharField(max_length=255)),
                ("zone", models.CharField(blank=True, max_length=64)),
                ("overlap", models.CharField(max_length=8)),
                ("missed", models.CharField(max_length=8)),
                ("ends", models.DateTimeField(null=True)),
                ("next_due", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AddField(
            model_name="delivery",
            name="failures",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="delivery",
            name="trigger",
            field=models.CharField(
                choices=[("subscription", "Subscription"), ("cron", "Cron")],
                db_default="subscription",
                default="subscription",
                max_length=12,
            ),
        ),
        migrations.AddField(
            model_name="delivery",
            name="unordered",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AlterField(
            model_name="delivery",
            name="bot_id",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("state", "failed")),
                fields=["project", "subscription_id", "change_id"],
                name="bots_delivery_dead",
            ),
        ),
        migrations.AddIndex(
            model_name="schedule",
            index=models.Index(fields=["next_due"], name="bots_schedule_due"),
        ),
        migrations.AddConstraint(
            model_name="schedule",
            constraint=models.UniqueConstraint(
                fields=("project", "owner_type", "owner_id"), name="bots_schedule_owner"
            ),
        ),
        migrations.RunSQL(CLAIM),
    ]
