"""``POST /$graphql``: queries in GraphQL, answered by :mod:`fhirstore.rest.graphql_engine`."""

from __future__ import annotations

from fhirstore.operations import OperationRequest, register_operation
from fhirstore.rest.messages import FhirResponse


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$graphql", run_query, system=True, methods=["POST"])


def run_query(request: OperationRequest) -> FhirResponse:
    """Answer ``{query, operationName, variables}`` with ``{data, errors}``; raises FhirError (400, 403)."""
    # Not at start-up: the library and the schema take half a second, and most processes are never asked.
    from fhirstore.rest import graphql_engine

    return graphql_engine.run_query(request)
