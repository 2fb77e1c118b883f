"""The AltaPay client: all sockets to the gateway, its messages, its proofs.

`client` calls, `payments` reads the Merchant API's XML, `callbacks` reads incoming callbacks, `outcomes` are
the results of a call. Nothing here depends on the database, a checkout's state or what follows from an
answer.
"""
