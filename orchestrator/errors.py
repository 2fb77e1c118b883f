"""The errors of the orchestrator, one tree.

    OrchestratorError
    ├── settings.SettingsError          a setting is missing or wrong; the process does not start
    ├── embedded.EmbeddedError          an embedded server cannot be started
    ├── supervise.UpFailed              `up` cannot bring the installation up
    ├── schema.NoDatabase               there is no database to work on
    ├── money.MoneyError                an amount or currency that cannot be represented exactly
    ├── intents.IntentRejected          an intent with all of its problems, each with its field
    ├── inbox.IntakeError               an intent that cannot be taken
    │   ├── inbox.OrderTaken            its order number has other content
    │   │   └── inbox.PaidBefore        a payment that came before it does not fit
    │   └── inbox.KeyReused             its idempotency key came with other content
    ├── gateway BodyError               the body of a callback cannot be read
    ├── access.AccessDenied             no token, a bad one, or one without the scope
    ├── api Refusal, Disconnected       an answer to the client; a client that has gone
    ├── merchants.UnknownMerchant       no such merchant
    ├── merchants.MerchantRejected      a value that a merchant cannot have, with its field
    ├── merchants.PolicyRejected        no such policy, or not with this value
    ├── merchants.GatewayNotAllowed     a gateway that credentials may not be sent to
    ├── states.UnknownTransition        code asked for a move that the table does not have
    ├── lifecycle.UnauditedMove         code tried to move without an entry in the trail
    ├── lifecycle.LeaseLost             somebody else holds the checkout now
    ├── archive.ArchiveError            history cannot be archived
    │   ├── archive.ArchiveBusy         another run is under way, or a lock is not to be had
    │   ├── archive.ArchiveUnread       a file that was just written does not prove itself
    │   └── archive.Unprovable          the trails of some checkouts do not hold
    ├── vault.VaultError                data that no known key opens, or whose key was destroyed
    ├── worker Silent                   the broker did not answer in time, and said why before
    ├── db.Unwritten                    a row that Postgres refused for good
    ├── db.DatabaseAway                 it is not known whether a row was written
    ├── demo Unscripted                 a shopper met what the script does not know
    └── bench BenchFailed               the bench could not measure

A leaf is named for the fact, builds its own sentence and keeps its facts as attributes. Outcomes of gateway calls are
values (``gateway.outcomes``), not exceptions.
"""


class OrchestratorError(Exception):
    """Base of everything that this package raises on purpose."""
