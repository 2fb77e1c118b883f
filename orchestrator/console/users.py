"""Users of the console: who may do what, and their passwords.

A new user, or one who has forgotten the password, gets a link that is shown once and opens one session, in
which a password is chosen. Who made the link is stored, since it opens the choice of the password: what
that person asks for above the limit is not approved by this user.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse

from orchestrator import passwords
from orchestrator.console import pages
from orchestrator.console.access import Refused, not_found
from orchestrator.domain.console_roles import ROLES
from orchestrator.store.console import sessions, users

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
NEW: Final = ("name", "role", "reason")
PASSWORD: Final = ("old", "new", "again")
WHAT: Final = {"role", "disable", "enable", "link"}


async def show_all(visit: Visit) -> Response:
    """List users."""
    return await _page(visit, done=visit.query("done").text("done"))


async def add(visit: Visit) -> Response:
    """Add a user; the answer shows the link, once."""
    name, role, reason = visit.form.text("name") or "", visit.form.values.get("role", ""), visit.form.reason()
    if not NAME.fullmatch(name):
        visit.form.wrong["name"] = "must be 1 to 64 letters, digits, dots, hyphens, underscores or @"
    if role not in ROLES:
        visit.form.wrong["role"] = "is not a role"
    if not visit.form.wrong and not await users.add(
        visit.db, visit.encryptor, name=name, role=role, by=visit.actor
    ):
        visit.form.wrong["name"] = "is taken, or there are too many users"
    if visit.form.wrong:
        return await _page(visit)
    await visit.note("user:added", "accepted", subject=name, facts={"role": role, "reason": reason})
    return await _page(visit, link=await _link(visit, name, role), named=name)


async def change(visit: Visit) -> Response:
    """Give a user another role, disable or enable it, or make a new link."""
    name, what = visit.request.path_params["name"], visit.form.values.get("what", "")
    role = visit.form.values.get("role", "")
    if what not in WHAT:
        raise not_found("There is no such action.")
    reason = visit.form.reason_or_refuse()
    if what == "role" and role not in ROLES:
        raise Refused(422, "Not done", "There is no such role.")
    if name == visit.session.actor:
        said = "Another admin changes your role, disables you or makes your link; your password you change yourself."
        raise Refused(409, "Not done", said)
    actor = visit.session.actor
    if what == "link" and f"{users.ACTOR}{name}" in await users.makers(visit.db, visit.encryptor, actor):
        said = "Your own link comes from this user: an admin who is independent makes this one."
        raise Refused(409, "Not done", said)
    changed = await users.change(
        visit.db,
        visit.encryptor,
        name,
        role=role if what == "role" else None,
        linked_by=visit.actor if what == "link" else None,
        disabled={"disable": True, "enable": False}.get(what),
        keep=visit.session.key,
    )
    if not changed:
        raise not_found("There is no such user, or the row was changed outside.")
    visit.console.sessions.forget()
    facts: dict[str, object] = {"reason": reason, **({"role": role} if what == "role" else {})}
    await visit.note(f"user:{what}", "accepted", subject=name, facts=facts)
    if what == "link":
        known = await users.by_name(visit.db, visit.encryptor, name)
        if known is not None and known.usable:
            return await _page(visit, link=await _link(visit, name, known.role), named=name)
    return RedirectResponse(f"/console/users?done={what}", 303)


async def show_password(visit: Visit) -> Response:
    """Show the form for one's own password."""
    return await _password_page(visit, done=visit.query("done").text("done"))


async def set_password(visit: Visit) -> Response:
    """Set one's own password; where there is one, it must be named."""
    old, new, again = (visit.form.values.get(name, "") for name in PASSWORD)
    wrong = visit.form.wrong
    if not passwords.SHORTEST <= len(new) <= passwords.LONGEST:
        wrong["new"] = f"must have {passwords.SHORTEST} to {passwords.LONGEST} characters"
    elif visit.session.actor.lower() in new.lower():
        wrong["new"] = "must not contain your name"
    elif new != again:
        wrong["again"] = "is not the same"
    known = await users.by_name(visit.db, visit.encryptor, visit.session.actor)
    if known is None or not known.usable:
        said = "You are signed in by a link or a token of a person who is not on the list."
        raise Refused(409, "No password", said)
    if known.password is None and visit.session.scopes != set(ROLES[known.role]):
        said = "The first password of a user is chosen in the session of its link: ask an admin for one."
        raise Refused(409, "No password", said)
    if known.password is not None and not await visit.console.sessions.matches(old, known.password):
        wrong["old"] = "is not your password"
    if wrong:
        await visit.note("user:password", "refused", subject=known.name)
        return await _password_page(visit)
    stored = await visit.console.sessions.hashed(new)
    await users.change(visit.db, visit.encryptor, known.name, password=stored, keep=visit.session.key)
    await visit.note("user:password", "accepted", subject=known.name)
    return RedirectResponse("/console/password?done=password", 303)


async def _link(visit: Visit, name: str, role: str) -> str:
    code = await sessions.begin(
        visit.db,
        visit.encryptor,
        actor=name,
        scopes=ROLES[role],
        seconds=sessions.LONGEST_LINK,
        link=True,
    )
    return f"{visit.services.settings.public_url}/console/link/{code}"


async def _page(
    visit: Visit,
    *,
    done: str | None = None,
    link: str | None = None,
    named: str | None = None,
) -> Response:
    return pages.render(
        visit,
        "users.html",
        fields=visit.form,
        rows=await users.listed(visit.db, visit.encryptor),
        roles={role: ", ".join(scopes) for role, scopes in ROLES.items()},
        given={name: visit.form.values.get(name, "") for name in NEW},
        done=done,
        link=link,
        named=named,
    )


async def _password_page(visit: Visit, *, done: str | None = None) -> Response:
    known = await users.by_name(visit.db, visit.encryptor, visit.session.actor)
    shortest = passwords.SHORTEST
    return pages.render(visit, "password.html", fields=visit.form, known=known, done=done, shortest=shortest)
