"""A hint as a worker has it from the broker.

A module of its own: nobody but a worker needs Celery's side of it.
"""

from __future__ import annotations

from celery.worker.request import Request


class Hint(Request):
    """One message of a queue that is consumed without acknowledgement: the broker has forgotten it already.

    Of such a message kombu's Redis transport strikes out a note that was never made, over a client made for
    it.
    """

    def acknowledge(self) -> None:
        """Have nothing to say to the broker."""
        self.acknowledged = True
