"""The audit trail: what is written of a checkout, how it is chained, sealed, archived and verified.

The only maker of entries.

The head of each chain stands on its checkout: a changed byte breaks its entry, a missing entry breaks the
sequence, and a cut tail disagrees with the head. Seals record the heads of all chains that grew, in a chain
of their own that can be exported, so that even a tail cut together with its head, or a whole missing
checkout, shows. What has left for an archive is noted under our key, up to which entry and in which file, and
each archive in a seal: entries that are gone without that are missing.
"""

from orchestrator.audit.archives import Opened, Page, open_archive, write_archive
from orchestrator.audit.chain import (
    FROM_PAYMENT,
    START,
    SYSTEM,
    Action,
    Entry,
    Head,
    chain_mac,
    from_unmatched_payment,
    make,
    walk,
)
from orchestrator.audit.findings import Findings
from orchestrator.audit.seals import seal, seal_archive
from orchestrator.audit.verification import export, verify, verify_chain
