"""The broker's side: the Celery app, its queues, and the publisher of hints.

The API and the worker both stand on it.
"""
