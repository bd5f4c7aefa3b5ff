"""Runs untrusted bot code in confined processes. The door is :mod:`bots.sandbox.api`; nothing here knows Django."""
