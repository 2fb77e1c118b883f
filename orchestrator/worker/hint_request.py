"""A hint as a worker gets it from the broker.

A module of its own: only a worker needs Celery's part of it.
"""

from __future__ import annotations

from celery.worker.request import Request


class Hint(Request):
    """A message of a queue that is consumed without acknowledgement: the broker has dropped it already.

    For such a message kombu's Redis transport deletes a record that was never made, over a client made for
    it.
    """

    def acknowledge(self) -> None:
        """Have nothing to say to the broker."""
        self.acknowledged = True
