"""Judgement without I/O: the state machine, money, what the gateway's books mean, and what may be decided."""
