"""The place of one measurement that needs what is still to be built: fair claiming among merchants.

`quiet_merchant` is called by the runner. As long as it returns None, the row of a quiet merchant beside a busy one says "not measured".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def quiet_merchant(*, seconds: float, show: Callable[[str], None]) -> dict[str, float] | None:
    """Return `{"alone_p99_ms", "beside_p99_ms"}`: intake → awaiting_payment of a merchant alone, and while another sends 20 × its rate."""
    show(f"quiet merchant beside a busy one ({seconds:g} s): not built yet")
    return None
