"""App configuration."""

from django.apps import AppConfig


class FhirstoreConfig(AppConfig):
    """The FHIR store."""

    name = "fhirstore"

    def ready(self) -> None:
        """Register what follows from writes, the standard operations, and the ear for other processes' changes."""
        from fhirstore import jobs as store_jobs
        from fhirstore import own_parameters, profiles, secrets
        from fhirstore.auth import accounts, identities
        from fhirstore.rest import (
            apply,
            batch,
            bulk,
            csv_export,
            everything,
            extract,
            graph,
            graphql,
            imports,
            jobs,
            maintenance,
            router,
            scheduling,
            standard,
            summary,
            terminology,
        )

        accounts.register()
        own_parameters.register()
        profiles.register()
        secrets.register()
        identities.listen()
        standard.register()
        scheduling.register()
        everything.register()
        terminology.register()
        csv_export.register()
        graphql.register()
        jobs.register()
        store_jobs.register()
        bulk.register()
        maintenance.register()
        summary.register()
        apply.register()
        extract.register()
        graph.register()
        imports.register()
        batch.register(router.handle)
