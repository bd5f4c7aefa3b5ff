"""The door of bots: what the console may use. Everything else in this package is its own affair."""

from __future__ import annotations

from bots.audit import MAX_OUTCOME_DESC, RUN
from bots.bot import DEFAULT_SOURCE, bot_create, bot_execute, bot_replay, bot_save_code
from bots.cron import plan_of_expression, scheduled
from bots.deployment import bot_deploy, deployment_current, deployment_roll_back, deployments, read_code
from bots.egress import bot_hosts, project_hosts, with_bot_hosts
from bots.execution import pool
from bots.models import Delivery, Deployment
from bots.request import ExecutionRequest, ExecutionResult
from bots.runs import Run, run_of, runs
from bots.runs import full as run_details
from bots.runs import lines as run_lines
from bots.sandbox.api import HostResponse, Invocation, LogLine, Program
from bots.secrets import secrets_set, secrets_shown
from bots.selectors import (
    ScheduleState,
    SubscriptionState,
    deliveries,
    deliveries_page,
    plan_state,
    schedule_state,
    subscription_state,
)
from bots.subscriptions import INTERACTION_URL, INTERACTIONS, PAUSED, watch_of
from bots.triggers import deliveries_replay, schedule_run_now
from bots.websockets import PATH as WEBSOCKET_PATH
from bots.websockets import serve as serve_websocket
from bots.wheels import MAX_PACKED as MAX_WHEEL_BYTES
from bots.wheels import wheel_add, wheel_remove, wheels

__all__ = [
    "DEFAULT_SOURCE",
    "INTERACTIONS",
    "INTERACTION_URL",
    "MAX_OUTCOME_DESC",
    "MAX_WHEEL_BYTES",
    "PAUSED",
    "RUN",
    "WEBSOCKET_PATH",
    "Delivery",
    "Deployment",
    "ExecutionRequest",
    "ExecutionResult",
    "HostResponse",
    "Invocation",
    "LogLine",
    "Program",
    "Run",
    "ScheduleState",
    "SubscriptionState",
    "bot_create",
    "bot_deploy",
    "bot_execute",
    "bot_hosts",
    "bot_replay",
    "bot_save_code",
    "deliveries",
    "deliveries_page",
    "deliveries_replay",
    "deployment_current",
    "deployment_roll_back",
    "deployments",
    "plan_of_expression",
    "plan_state",
    "pool",
    "project_hosts",
    "read_code",
    "run_details",
    "run_lines",
    "run_of",
    "runs",
    "schedule_run_now",
    "schedule_state",
    "scheduled",
    "secrets_set",
    "secrets_shown",
    "serve_websocket",
    "subscription_state",
    "watch_of",
    "wheel_add",
    "wheel_remove",
    "wheels",
    "with_bot_hosts",
]
