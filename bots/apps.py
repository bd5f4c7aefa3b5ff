"""App configuration: what the Bots hang on the store, at start-up."""

from django.apps import AppConfig


class BotsConfig(AppConfig):
    """Bots."""

    name = "bots"

    def ready(self) -> None:
        """Register operations, hooks and the doorbell with the store."""
        from bots import (
            context,
            cron,
            custom_operations,
            egress,
            operations,
            pre_commit,
            runqueue,
            runs,
            subscriptions,
            tasks,
            trigger_operations,
            websockets,
        )
        from fhirstore.api import before_delete, before_write, on_change, review_writes

        operations.register()
        custom_operations.register()
        runqueue.register()
        runqueue.bell.add(tasks.ring_runs)
        trigger_operations.register()
        websockets.register()
        before_write(["Subscription"], subscriptions.check_subscription)
        before_write(["Subscription"], websockets.await_on_create)
        before_write(["Bot", "Cron"], cron.plan_on_write)
        before_delete(["Bot", "Cron"], cron.drop_on_delete)
        before_write(["Project"], cron.replan_on_write)
        before_write(["Project"], egress.check_project)
        before_write(["Project"], runs.check_project)
        before_write(["Bot"], egress.check_bot)
        before_write(["Bot"], context.check_bot)
        before_write(context.REMEMBERED, context.forget_on_write)
        before_delete(context.REMEMBERED, context.forget_on_delete)
        review_writes(pre_commit.review)
        on_change(tasks.ring_dispatch)
