"""The demo shop: a shop to copy (`example`), and beside its pages what is said between all parties.

It is a process and an origin of its own, as shops are, and uses the public API with a token. `diagrams` draws
the two sequence diagrams of the payment flow, `stage` records messages and orders trouble at the sandbox.
"""
