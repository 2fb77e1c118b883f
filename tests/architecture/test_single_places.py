"""What a linter cannot see: some things are done in one package and nowhere else.

Every rule is a function from one module to the lines that break it. It runs over the whole package, and over
a small bad example in a module where it is forbidden and in a module where it is allowed: a rule that cannot
fail holds nothing.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

import orchestrator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(orchestrator.__file__).parent
LONGEST = 500


@dataclass(frozen=True)
class Module:
    """One file of the package: `store/checkouts/transition.py` stands below the place `store/checkouts`."""

    path: PurePosixPath
    source: str

    def is_below(self, place: str) -> bool:
        """Say whether it is the module of that name, or stands in the package."""
        return f"{self.path.with_suffix('')}/".startswith(f"{place}/")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))


@cache
def modules() -> tuple[Module, ...]:
    """Return the files of the package, each read and parsed once for all rules."""
    return tuple(
        Module(PurePosixPath(path.relative_to(PACKAGE).as_posix()), path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    )


def imported(module: Module) -> Iterator[tuple[int, str]]:
    for node in module.nodes:
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom(module=str(parent)):
                yield from ((node.lineno, f"{parent}.{alias.name}") for alias in node.names)


def texts(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module that are not documentation, f-strings in one piece."""
    prose = {id(node.value) for node in module.nodes if isinstance(node, ast.Expr)}
    inside = {id(part) for node in module.nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in module.nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose | inside:
                yield node.lineno, text
            case ast.JoinedStr(values=parts):
                yield (
                    node.lineno,
                    "".join(part.value if isinstance(part, ast.Constant) else "?" for part in parts),
                )


def commits(module: Module) -> Iterator[int]:
    for node in module.nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="commit")):
                yield node.lineno


def celery(module: Module) -> Iterator[int]:
    yield from (line for line, name in imported(module) if name.split(".")[0] in {"celery", "kombu"})


def http_clients(module: Module) -> Iterator[int]:
    clients = ("httpx", "httpx_aiohttp", "aiohttp", "requests", "urllib3", "urllib.request", "http.client")
    yield from (
        line
        for line, name in imported(module)
        if any(f"{name}.".startswith(f"{client}.") for client in clients)
    )


def environment(module: Module) -> Iterator[int]:
    for node in module.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "putenv"):
                yield node.lineno
    yield from (line for line, name in imported(module) if name in {"os.environ", "os.environb", "os.getenv"})


def writes(*tables: str) -> Callable[[Module], Iterator[int]]:
    """Find writes to a table, as SQL text and as SQLAlchemy's own constructs."""
    named = "|".join(tables)
    sql = re.compile(
        rf"\b(insert\s+into|update(\s+only)?|delete\s+from|copy)\s+\"?({named})\b", re.IGNORECASE
    )

    def find(module: Module) -> Iterator[int]:
        yield from (line for line, text in texts(module) if sql.search(text))
        for node in module.nodes:
            match node:
                case ast.Call(
                    func=ast.Name(id="insert" | "update" | "delete")
                    | ast.Attribute(attr="insert" | "update" | "delete"),
                    args=[ast.Name(id=table) | ast.Attribute(attr=table), *_],
                ) if table in tables:
                    yield node.lineno
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id=table) | ast.Attribute(attr=table),
                        attr="insert" | "update" | "delete",
                    )
                ) if table in tables:
                    yield node.lineno

    return find


def empty_verbs(module: Module) -> Iterator[int]:
    for node in module.nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if re.match(
                r"_*(process|handle|do)_", name
            ):
                yield node.lineno


def empty_nouns(module: Module) -> Iterator[int]:
    words = {word for part in module.path.with_suffix("").parts for word in part.split("_")}
    if words & {
        *("util", "utils", "helper", "helpers", "service", "services"),
        *("manager", "managers", "repository", "repositories"),
    }:
        yield 1


def too_long(module: Module) -> Iterator[int]:
    if module.source.count("\n") > LONGEST:
        yield LONGEST + 1


def undescribed(module: Module) -> Iterator[int]:
    if not ast.get_docstring(module.tree):
        yield 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What must not be found, but in the modules and packages that are named."""

    says: str
    find: Callable[[Module], Iterator[int]]
    places: tuple[str, ...]
    example: str
    examples_path: str = "elsewhere.py"

    def broken_by(self, module: Module) -> list[str]:
        if any(module.is_below(place) for place in self.places):
            return []
        return [f"orchestrator/{module.path}:{line}: {self.says}" for line in sorted(self.find(module))]


RULES = {
    "commit": Rule(
        "commits stand in store.database",
        commits,
        ("store/database",),
        "def save(session):\n    session.commit()\n",
    ),
    "celery": Rule(
        "Celery stands in messaging and worker", celery, ("messaging", "worker"), "from kombu import Queue\n"
    ),
    "http": Rule(
        "HTTP clients stand in gateway and delivery, in issuer_keys and oidc, in the client of our own API, in what forwards events to a developer, in the sandbox, the demo and the demo shop",
        http_clients,
        (
            "gateway",
            "delivery",
            "issuer_keys",
            "oidc",
            "devkit/client",
            "devkit/listener",
            "devkit/sandbox",
            "devkit/demo",
            "devkit/shop",
        ),
        "from urllib.request import urlopen\n",
    ),
    "environment": Rule(
        "the environment is read in settings, and passed on to children in devkit.local",
        environment,
        ("settings", "devkit/local"),
        "import os\nurl = os.environ['DATABASE_URL']\n",
    ),
    "state": Rule(
        "checkouts are written in store.checkouts",
        writes("checkouts"),
        ("store/checkouts",),
        "SQL = f'''\n  UPDATE checkouts SET state = {1}'''\n",
    ),
    "audit": Rule(
        "audit entries are written in store.checkouts and audit",
        writes("audit_entries"),
        ("store/checkouts", "audit"),
        "from sqlalchemy import insert\nfrom orchestrator.store.tables import audit_entries\nADD = insert(audit_entries)\n",
    ),
    "verbs": Rule(
        "a function is named for what it does: not process_, handle_, do_",
        empty_verbs,
        (),
        "class Api:\n    async def _handle_callback(self): ...\n",
    ),
    "nouns": Rule(
        "a module is a noun of the flow: not utils, helpers, service, manager, repository",
        empty_nouns,
        (),
        "",
        "gateway/xml_utils.py",
    ),
    "length": Rule(
        f"past {LONGEST} lines a module becomes a package of the same name", too_long, (), "x = 1\n" * 501
    ),
    "docstring": Rule("a module says what it guarantees and what it must not do", undescribed, (), "x = 1\n"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_holds(name: str) -> None:
    broken = [line for module in modules() for line in RULES[name].broken_by(module)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("name", RULES)
def test_the_rule_can_fail_where_it_should_and_only_there(name: str) -> None:
    rule = RULES[name]
    assert rule.broken_by(Module(PurePosixPath(rule.examples_path), rule.example))
    for place in rule.places:
        for path in (f"{place}.py", f"{place}/part.py"):
            assert not rule.broken_by(Module(PurePosixPath(path), rule.example))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("commit", '"""Mentions session.commit() only."""\n'),
        ("celery", "import celerity\n"),
        ("http", "from urllib.parse import urlsplit\nfrom http import HTTPStatus\n"),
        ("environment", "import os\npid = os.getpid()\n"),
        (
            "state",
            '"""No statement here runs UPDATE checkouts."""\nSQL = "SELECT state FROM checkouts FOR UPDATE"\n',
        ),
        ("audit", 'SQL = "SELECT * FROM audit_entries"\nseen = {}\nseen.update(audit)\n'),
        ("verbs", "def dock_ship(): ...\ndef processed(): ...\n"),
        ("length", "x = 1\n" * 500),
    ],
)
def test_the_rule_leaves_the_innocent_alone(name: str, source: str) -> None:
    assert not RULES[name].broken_by(Module(PurePosixPath("elsewhere.py"), source))


def test_the_rules_see_the_whole_package() -> None:
    seen = {module.path.as_posix() for module in modules()}
    assert {"auth.py", "domain/states.py", "devkit/local/servers/postgres.py"} <= seen
