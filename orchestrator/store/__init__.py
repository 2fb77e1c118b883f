"""Postgres: connections, the batch writer, tables and schema, and what is stored in them."""
