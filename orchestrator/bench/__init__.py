"""The bench: how much an installation carries, measured with an open load against a light gateway, and checked against its books.

gateway.py     the light gateway, a process of its own: books.py, documents.py, shoppers.py, latency.py
wire.py        a cheap HTTP client for load
"""
