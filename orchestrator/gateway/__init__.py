"""Everything that touches AltaPay: the only sockets to it, its words, its proofs.

`client` calls, `payments` reads the Merchant API's XML, `callbacks` reads what the gateway sends us,
`outcomes` is what a call can come to. Nothing here knows the database, a checkout's state or what follows
from an answer.
"""
