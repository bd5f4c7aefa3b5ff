"""Bots for FHIR servers, in Python: the client and the event that a handler gets, and tools to test and deploy it.

>>> async def handler(medplum: MedplumClient, event: BotEvent):
...     patient = await medplum.create_resource({"resourceType": "Patient", "active": True})
...     return {"created": patient["id"]}
"""

from fhirbots.client import MedplumClient, ResourceList
from fhirbots.errors import OperationOutcomeError
from fhirbots.event import BotEvent
from fhirbots.fetch import fetch, fetch_sync
from fhirbots.streaming import ResponseStream
from fhirbots.sync_client import SyncMedplumClient
from fhirbots.transport import Response, TransportError

__version__ = "0.1.0"

__all__ = [
    "BotEvent",
    "MedplumClient",
    "OperationOutcomeError",
    "ResourceList",
    "Response",
    "ResponseStream",
    "SyncMedplumClient",
    "TransportError",
    "fetch",
    "fetch_sync",
]
