"""One TLS context for HTTP clients that are made often, or in a loop: reading the certificates takes longer than what they ask."""

import httpx

TLS = httpx.create_ssl_context()
