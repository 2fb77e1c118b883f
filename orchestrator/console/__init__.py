"""The operations console: pages for people who look after money and orders, below `/console`.

Rendered on the server; what comes from outside is text and never markup. Every action goes the way of the
API: it is checked by `domain.command_rules` against the version that the page showed, stored by
`store.inbox` as a command with the user's name, and executed by a worker. Nothing here moves a checkout or
calls the gateway.
"""

from orchestrator.console.app import Console

__all__ = ["Console"]
