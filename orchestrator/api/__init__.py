"""HTTP: intake, reads, cancel, callbacks, health and documentation.

Everything that fails answers problem+json.

`create_app` builds the app from `Services`; `orchestrator.api.server.run` makes those from the settings and
serves. Writes go through `inbox` and nothing here moves a checkout; `reads` only reads. No URL of a callback
and no token reaches a log.
"""

from orchestrator.api.app import create_app
from orchestrator.api.dependencies import Services
