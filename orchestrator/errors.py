"""The errors of the orchestrator, one tree.

    OrchestratorError
    ├── settings.SettingsError          a setting is missing or wrong; the process does not start
    ├── devkit EmbeddedError            an embedded server cannot be started
    ├── devkit UpFailed                 `up` cannot bring the installation up
    ├── store NoDatabase                there is no database to work on
    ├── domain MoneyError               an amount or currency that cannot be represented exactly
    ├── intents.IntentRejected          an intent with all of its problems, each with its field
    ├── intents.SubmissionRejected      a message that is not a list of intents with a token
    ├── intents.HeaderRejected          a file that is not UTF-8, or CSV with unknown columns
    ├── store IntakeError               an intent that cannot be accepted
    │   ├── store OrderTaken            its order number has other content
    │   │   └── store PaidBefore        a payment that came before it does not fit
    │   ├── store KeyReused             its idempotency key came with other content
    │   ├── store AnswerUnreadable      the answer that its idempotency key had is under no known key
    │   └── store ReasonNotKept         a reason for a checkout whose data key was destroyed
    ├── gateway BodyError               the body of a callback cannot be read
    ├── auth.AccessDenied               no token, an invalid one, or one without the scope
    ├── api Refusal, Disconnected       an answer to the client; a client that disconnected
    ├── oidc SignInFailed               the identity provider signs a person in at the console, or does not
    ├── console Refused, SignedOut      a page that says why nothing was done; a browser without a session
    ├── delivery WebhookUrlRejected     a URL that no event is sent to
    ├── delivery AddressForbidden       a name that leads to an address that is not public
    ├── delivery NameUnknown            a name without an address
    ├── store ChoiceChanged            a bulk action would touch other orders than its preview showed
    ├── store TooManyWebhooks           a merchant has as many webhooks as it may
    ├── store TooManyTests             as many test events of a webhook wait as may
    ├── store PeriodTooLong            more events in a period than are sent again at a time
    ├── api TooManyWaiting              as many clients wait, or follow a checkout, as may
    ├── store UnknownMerchant           no such merchant
    ├── store MerchantRejected          a value that a merchant cannot have, with its field
    ├── store PolicyRejected            no such policy, or not with this value
    ├── store GatewayNotAllowed         a gateway that credentials may not be sent to
    ├── domain UnknownTransition        code requested a move that the table does not have
    ├── store UnauditedMove             code tried to move without an entry in the trail
    ├── store LeaseLost                 another worker holds the checkout now
    ├── audit ArchiveError              history cannot be archived
    │   ├── audit ArchiveBusy           another run is under way, or a lock is not available
    │   ├── audit ArchiveUnread         a file that was just written fails its own check
    │   └── audit Unprovable            the trails of some checkouts do not hold
    ├── crypto.EncryptionError          data that no known key decrypts
    │   └── crypto.Erased               its key was destroyed: the customer was erased
    ├── messaging Silent                the broker did not answer in time, and gave the reason before
    ├── store Unwritten                 a row that Postgres refused for good
    ├── store DatabaseAway              it is not known whether a row was written
    ├── devkit ClientError              our API did not do what our client requested
    │   ├── devkit NoAnswer, BadAnswer  no answer; an answer outside the contract
    │   └── devkit Refused              a problem: Denied, NotFound, Conflict, Invalid or Unavailable
    ├── devkit NoSandbox                a gateway that takes no scripts: it may be a real one
    ├── devkit Unscripted               a shopper met something outside the script
    └── devkit BenchFailed              the bench could not measure

A leaf is named for the fact, builds its own sentence and keeps its facts as attributes. Outcomes of gateway
calls are values (``gateway.outcomes``), not exceptions.
"""


class OrchestratorError(Exception):
    """Base of everything that this package raises on purpose."""
