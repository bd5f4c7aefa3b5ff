"""Projects take turns in deliveries. Both indexes are on rows that are open; building them locks deliveries for a moment."""

from django.db import migrations, models

# The projects with something waiting are found by hopping along the index; of each the oldest is one look. What waits for its next
# attempt is not in that index: however many have failed, they slow down nobody. As in 0002 the planner is told how.
CLAIM = """
DROP FUNCTION bots_claim_delivery(integer, boolean);
CREATE FUNCTION bots_claim_delivery(claimer integer, only_bots boolean, busy text[], share integer)
RETURNS SETOF bots_delivery LANGUAGE plpgsql
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
DECLARE
    candidate text;
BEGIN
    FOR candidate IN
        WITH RECURSIVE hop(project) AS (
            (SELECT d.project FROM bots_delivery AS d WHERE d.state = 'waiting' ORDER BY d.project LIMIT 1)
            UNION ALL
            SELECT (SELECT d.project FROM bots_delivery AS d WHERE d.state = 'waiting' AND d.project > hop.project
                    ORDER BY d.project LIMIT 1)
            FROM hop WHERE hop.project IS NOT NULL
        )
        SELECT hop.project FROM hop, LATERAL (SELECT count(*) AS under_way FROM unnest(busy) AS b WHERE b = hop.project) AS mine
        WHERE hop.project IS NOT NULL AND mine.under_way < share
        ORDER BY mine.under_way, random()
    LOOP
        RETURN QUERY UPDATE bots_delivery
        SET state = 'running', lease = claimer, attempts = attempts + 1, started = clock_timestamp()
        WHERE id = (
            SELECT next.id FROM bots_delivery AS next
            WHERE next.state = 'waiting' AND next.project = candidate
              AND NOT (only_bots AND next.bot_id = '') AND (next.unordered OR (
                SELECT true FROM bots_delivery AS earlier
                WHERE earlier.state IN ('waiting', 'running', 'retrying')
                  AND earlier.subscription_id = next.subscription_id AND earlier.resource_type = next.resource_type
                  AND earlier.resource_id = next.resource_id AND earlier.change_id < next.change_id LIMIT 1) IS NULL)
            ORDER BY next.change_id, next.id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING *;
        IF FOUND THEN
            RETURN;
        END IF;
    END LOOP;
END $$
"""


class Migration(migrations.Migration):
    dependencies = [
        ("bots", "0007_run"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="delivery", name="bots_delivery_claimable"),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("state", "waiting")),
                fields=["project", "change_id", "id"],
                name="bots_delivery_waiting",
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("state", "retrying")), fields=["due"], name="bots_delivery_retrying"
            ),
        ),
        migrations.RunSQL(CLAIM),
    ]
