"""What an operator sees: metrics in the format of Prometheus, and the promises from which alert rules, the
dashboard and headings of the runbook are made.

It reads Postgres and nothing else, so that any API process answers for the whole installation, and writes
nothing. Nothing here runs on the path of a request but that of `/metrics`.
"""

from orchestrator.monitoring.exposition import Monitor

__all__ = ["Monitor"]
