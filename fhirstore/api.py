"""The door of fhirstore: what the apps above may use. Everything else in this package is its own affair."""

from __future__ import annotations

from fhirstore.access import Policy
from fhirstore.auth.accounts import (
    Invitation,
    client_create,
    client_rotate_secret,
    member_invite,
    member_remove,
    membership_create,
    project_update,
)
from fhirstore.auth.cleaning import forget_old_logins_sometimes
from fhirstore.auth.identities import (
    UserMembership,
    authenticate,
    check_address,
    identity_of_login,
    identity_of_membership,
    membership_of_profile,
    memberships_of_user,
)
from fhirstore.auth.keys import encryption, sign, verify
from fhirstore.auth.passwords import (
    password_check,
    password_forgotten,
    password_link_user,
    password_set,
)
from fhirstore.binaries import presign_urls
from fhirstore.binaries import sweep as sweep_binaries
from fhirstore.bootstrap import Bootstrapped, bootstrap, project_create
from fhirstore.changes import Change, Doorbell, claim_changes, delete_changes, new_change_id, on_change
from fhirstore.database import close as close_connections
from fhirstore.database import connection, connection_parameters, lock, on_commit, plain_array, transaction
from fhirstore.definitions.registry import (
    Element,
    Structure,
    is_resource_type,
    resource_types,
    search_parameter,
    search_parameters,
    structure,
    value_set_codes,
)
from fhirstore.errors import (
    STATUS_BY_ID,
    FhirError,
    Outcome,
    all_ok,
    bad_request,
    content_too_large,
    forbidden,
    is_ok,
    issue,
    method_not_allowed,
    not_found,
    outcome,
    outcome_text,
    status_of,
)
from fhirstore.fhirpath import compile_expression, evaluate, is_true, locate
from fhirstore.hooks import before_delete, before_write, review_writes, reviewing
from fhirstore.identity import Identity, system_identity
from fhirstore.jobs import (
    Job,
    JobStoppedError,
    begin_job,
    cancel_job,
    due_jobs,
    expire_files,
    finish_job,
    on_job,
    register_job,
    run_due_jobs,
    start_job,
    stop_jobs,
)
from fhirstore.notices import listen, notify
from fhirstore.operations import OperationRequest, has_operation, register_fallback, register_operation
from fhirstore.reindex import Reindexed, reindex
from fhirstore.repository import Repository, SearchResult, Stored
from fhirstore.rest.body import TOO_DEEP, is_deep, parse_json, read_json
from fhirstore.rest.http import endpoint, json_response, read_body, read_headers, refusing
from fhirstore.rest.jobs import request_url, respond_accepted, wants_async
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.parameters import read_input
from fhirstore.rest.response import respond_outcome, respond_resource
from fhirstore.rest.router import handle, log_failure
from fhirstore.search.index import index
from fhirstore.search.match import match
from fhirstore.search.model import IndexValues, SearchRequest
from fhirstore.search.parse import parse
from fhirstore.secrets import MASK
from fhirstore.secrets import masked as secret_masked
from fhirstore.secrets import of_project as secrets_of_project
from fhirstore.secrets import replace as secrets_replace
from fhirstore.site import handle_site_request
from fhirstore.tables import find_project, new_id, projects
from fhirstore.validation import strip_nulls, validate

__all__ = [
    "MASK",
    "STATUS_BY_ID",
    "TOO_DEEP",
    "Bootstrapped",
    "Change",
    "Doorbell",
    "Element",
    "FhirError",
    "FhirRequest",
    "FhirResponse",
    "Identity",
    "IndexValues",
    "Invitation",
    "Job",
    "JobStoppedError",
    "OperationRequest",
    "Outcome",
    "Policy",
    "Reindexed",
    "Repository",
    "SearchRequest",
    "SearchResult",
    "Stored",
    "Structure",
    "UserMembership",
    "all_ok",
    "authenticate",
    "bad_request",
    "before_delete",
    "before_write",
    "begin_job",
    "bootstrap",
    "cancel_job",
    "check_address",
    "claim_changes",
    "client_create",
    "client_rotate_secret",
    "close_connections",
    "compile_expression",
    "connection",
    "connection_parameters",
    "content_too_large",
    "delete_changes",
    "due_jobs",
    "encryption",
    "endpoint",
    "evaluate",
    "expire_files",
    "find_project",
    "finish_job",
    "forbidden",
    "forget_old_logins_sometimes",
    "handle",
    "handle_site_request",
    "has_operation",
    "identity_of_login",
    "identity_of_membership",
    "index",
    "is_deep",
    "is_ok",
    "is_resource_type",
    "is_true",
    "issue",
    "json_response",
    "listen",
    "locate",
    "lock",
    "log_failure",
    "match",
    "member_invite",
    "member_remove",
    "membership_create",
    "membership_of_profile",
    "memberships_of_user",
    "method_not_allowed",
    "new_change_id",
    "new_id",
    "not_found",
    "notify",
    "on_change",
    "on_commit",
    "on_job",
    "outcome",
    "outcome_text",
    "parse",
    "parse_json",
    "password_check",
    "password_forgotten",
    "password_link_user",
    "password_set",
    "plain_array",
    "presign_urls",
    "project_create",
    "project_update",
    "projects",
    "read_body",
    "read_headers",
    "read_input",
    "read_json",
    "refusing",
    "register_fallback",
    "register_job",
    "register_operation",
    "reindex",
    "request_url",
    "resource_types",
    "respond_accepted",
    "respond_outcome",
    "respond_resource",
    "review_writes",
    "reviewing",
    "run_due_jobs",
    "search_parameter",
    "search_parameters",
    "secret_masked",
    "secrets_of_project",
    "secrets_replace",
    "sign",
    "start_job",
    "status_of",
    "stop_jobs",
    "strip_nulls",
    "structure",
    "sweep_binaries",
    "system_identity",
    "transaction",
    "validate",
    "value_set_codes",
    "verify",
    "wants_async",
]
