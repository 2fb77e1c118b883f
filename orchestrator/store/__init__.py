"""Postgres: connections, the batch writer, tables and schema, and what is stored in them."""

# So that whoever asks for the tables has all of them.
from orchestrator.store import webhook_tables as webhook_tables
