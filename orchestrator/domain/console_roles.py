"""Roles of users of the console, and the scopes that each has."""

from __future__ import annotations

from typing import Final

ROLES: Final = {
    "viewer": ("console:view",),
    "operator": ("console:view", "console:operate"),
    "approver": ("console:view", "console:approve"),
    "admin": ("console:view", "console:operate", "console:approve", "console:admin"),
}
