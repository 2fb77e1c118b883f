"""What `/autoscale` answers."""

from __future__ import annotations

from typing import Annotated

from orchestrator.api.contract.values import Count, Shape, about
from orchestrator.store.due_work import YOUNG


class Autoscale(Shape, kw_only=True):
    """How many workers the waiting work calls for."""

    workers: Annotated[
        Count,
        about(
            "The larger of two figures: a worker for each 500 waiting checkouts, "
            "and one for each 15 s of the oldest one's wait",
            2,
        ),
    ]
    waiting: Annotated[
        Count, about(f"Checkouts that a worker could take and that have waited for more than {YOUNG} s", 640)
    ]
    oldest_due_seconds: Annotated[
        float,
        about("For how long the oldest of them has waited; 0: none waits", 8.4, minimum=0, maximum=2**31 - 1),
    ]
