"""The promises of an installation and the ways in which it gets stuck: one table, from which the alert rules,
their tests, the dashboard and the alerts' chapters of the runbook are made.

Where there is traffic, a rule burns an error budget in two windows; where there is little, it counts promises
that are broken. Each fires within two minutes of its cause, at a scrape interval of 15 s or less. Expressions
take the maximum over instances, since each API process shows the figures of the whole installation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from orchestrator.monitoring.catalogue import PREFIX
from orchestrator.store import readiness

if TYPE_CHECKING:
    from collections.abc import Mapping

BUDGET: Final = 14.4
"""How many times faster than allowed an error budget of 30 days burns when a page is due."""

FEW: Final = 2
"""Failures in two minutes that are no alert by themselves."""

GATEWAY_OBJECTIVE: Final = 0.99
"""The share of calls to gateways that should have a usable answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise: the rule that sees it broken, and what the runbook says then.

    `broken` and `kept` are series for the rule's test, in promtool's notation, by their names without the
    prefix. `fires` are the labels of the alert, beside its severity.
    """

    name: str
    expression: str
    lasts: str = "30s"
    """How long the expression must hold, in Prometheus's notation."""
    severity: Literal["page", "ticket"]
    summary: str
    meaning: str
    look_at: str
    do: str
    broken: Mapping[str, str]
    kept: Mapping[str, str]
    fires: tuple[Mapping[str, str], ...] = field(default=({},))
    after_an_hour: bool = False
    """Whether `broken` begins with a healthy hour, which the rule looks back on."""

    @property
    def anchor(self) -> str:
        """The anchor of its chapter in docs/runbook-alerts.md, as GitHub makes it of the heading."""
        return self.name.lower()


def _top(metric: str, by: str = "", **labels: str) -> str:
    return f"max{f' by ({by}) ' if by else ''}({_series(metric, **labels)})"


def _due(queue: str) -> str:
    return _top("oldest_due_seconds", queue=queue)


def _series(metric: str, **labels: str) -> str:
    """Return a selector; a value that begins with an operator (`=~`, `!=`) has its own."""
    pairs = ", ".join(
        f'{name}{value[:2]}"{value[2:]}"' if value[:2] in {"=~", "!=", "!~"} else f'{name}="{value}"'
        for name, value in labels.items()
    )
    return f"{PREFIX}{metric}{{{pairs}}}" if pairs else PREFIX + metric


def _burn(every: str, *, objective: float, bad: str = "", good: str = "") -> str:
    """Return the rule of an error budget that burns fast in the last two minutes and in the last five.

    It takes selectors of counters: all, and the bad or the good among them. A few bad ones are no alert, nor
    is a fault of some seconds. After any healthy time it fires within two minutes where half of them are bad;
    where fewer are, later.
    """

    def of(window: str) -> tuple[str, str]:
        total, part = (
            f"sum(max without (instance, pod) (increase({selector}[{window}])))"
            for selector in (every, bad or good)
        )
        return (part if bad else f"({total} - {part})"), total

    allowed = f"{BUDGET * (1 - objective):.4g}"
    (short, all_short), (long, all_long) = of("2m"), of("5m")
    return f"{short} / {all_short} > {allowed} and {long} / {all_long} > {allowed} and {short} > {FEW}"


def _counted(healthy: int, broken: int) -> str:
    """Return a counter that grows by so much in each scrape of an hour, and then by so much."""
    return f"0+{healthy}x239 {healthy * 239 + broken}+{broken}x20"


_INTAKE: Final = "=~/v1/checkouts(/batch)?|/callbacks/.*"


_AFTERWARDS: Final = f"`orchestrator doctor` and `/readyz` may name the fault for up to {readiness.OVER_WITHIN:.0f} s after the repair."

PROMISES: Final = (
    Promise(
        name="NoApi",
        expression=f"absent({PREFIX}database_up)",
        lasts="1m",
        severity="page",
        summary="No API process answers scrapes: orders and callbacks may be refused.",
        meaning="Prometheus gets no figures. The API is down, or `/metrics` cannot be reached: then no other alert gets data.",
        look_at="The targets of Prometheus; `curl -i https://…/healthz`; the log of `orchestrator api`.",
        do="Start `orchestrator api`. A 401 at `/metrics` means that the token differs from `ORCHESTRATOR_METRICS_TOKEN`.",
        broken={"anything": "1x20"},
        kept={"database_up": "1x20"},
    ),
    Promise(
        name="DatabaseAway",
        expression=f"min({PREFIX}database_up) == 0 or min({PREFIX}ready) == 0",
        severity="page",
        summary="Postgres cannot be used: nothing is accepted.",
        meaning="Postgres is out of reach, read-only or full, or its schema is another one. Orders are answered 503; callbacks are repeated by the gateway.",
        look_at="`orchestrator doctor`: the lines `database`, `writes` and `schema` have the server's own words. Where it does not answer: `ps -eo pid,stat,args | grep '[p]ostgres'` on its host.",
        do=f"Bring Postgres back ([postgres.md](postgres.md)), or run `orchestrator migrate`. Processes of Postgres in the state `T` are stopped: `kill -CONT PID` for each of them. Nothing that was acknowledged is lost; processes connect again by themselves. {_AFTERWARDS}",
        broken={"database_up": "0x20", "ready": "0x20"},
        kept={"database_up": "1x20", "ready": "1x20"},
    ),
    Promise(
        name="NoWorker",
        expression=f"{_top('processes', 'kind', kind='=~worker|scheduler')} == 0",
        severity="page",
        summary="No worker, or no scheduler, is alive: orders are stored, and wait.",
        meaning="The last heartbeat of this kind of process is more than 20 s old. Without a worker nothing moves; without a scheduler workers sweep by themselves, slowly.",
        look_at="First the line `broker` of `orchestrator doctor`: a scheduler whose sweeps do not reach the broker gives no heartbeat, so a stopped broker looks like a missing scheduler. Where that line, or the line `database`, has a problem, follow `ProcessTrouble` or `DatabaseAway` first; when it is well again and a process is still missing, go on here. Where the process should run: is it there, and in which state (`ps -eo pid,ppid,stat,args | grep -E '[o]rchestrator (worker|scheduler)'`, or `systemctl status`, or `kubectl get pods`)? Where the host has several installations, ours are those whose parent (`ppid`) is the `orchestrator up` or the service of ours. Then its log: `process_broke`, `worker_stuck`, `heartbeat_failed`.",
        do="It is gone: start `orchestrator worker` or `orchestrator scheduler` (`orchestrator up` starts one that ended by itself). It is there in the state `T` (stopped by a signal or a debugger): `kill -CONT PID` lets it go on; where it is in `D`, its disk or network file system does not answer. It runs, and has no heartbeat: end it (`kill PID`, after 30 s `kill -KILL PID`) and start it anew. Nothing is lost: leases of a killed or stopped worker end after 10 s, and others take their checkouts.",
        broken={'processes{kind="worker"}': "0x20", 'processes{kind="scheduler"}': "1x20"},
        kept={'processes{kind="worker"}': "2x20", 'processes{kind="scheduler"}': "1x20"},
        fires=({"kind": "worker"},),
    ),
    Promise(
        name="WorkStandsStill",
        expression=f"{_top('oldest_due_seconds', 'queue', queue='=~checkouts|callbacks')} > 60",
        severity="page",
        summary="Checkouts have been due for more than a minute, and no worker takes them.",
        meaning="Work waits, whatever queues and processes look like. The age counts from when it was due, and no sweep resets it.",
        look_at="First the lines `workers`, `broker` and `database` of `orchestrator doctor`, and whether `NoWorker`, `ProcessTrouble` or `DatabaseAway` fires: then this is its consequence, and that chapter is the one to follow. Else `orchestrator_waiting` and `orchestrator_merchant_oldest_due_seconds`: all merchants, or one. Calls of a paused merchant wait on purpose, and are not counted (`orchestrator merchants list` names it).",
        do="Of all merchants: add workers. Of one: its gateway is slow, or its lookups wait (`orchestrator merchants set NAME lookups_per_minute=…`).",
        broken={'oldest_due_seconds{queue="checkouts"}': "0+15x20", 'oldest_due_seconds{queue="callbacks"}': "0x20"},
        kept={'oldest_due_seconds{queue="checkouts"}': "2 30 5 0x17", 'oldest_due_seconds{queue="callbacks"}': "1x20"},
        fires=({"queue": "checkouts"},),
    ),
    Promise(
        name="OperationUnclear",
        expression=f"{_due('operations')} > 600",
        severity="page",
        summary="A capture, refund or release has had no result for ten minutes.",
        meaning="It was sent, or could not be sent, and the gateway's books do not show the result yet. It is never sent twice meanwhile.",
        look_at='`orchestrator_money_at_risk{kind="operation"}`; `orchestrator checkouts list --attention operation_unclear`; `explain` of the checkout.',
        do="Bring the gateway back; then the worker looks the result up. Where the books stay silent, an attention `operation_unclear` comes: see its chapter in [runbook.md](runbook.md).",
        broken={'oldest_due_seconds{queue="operations"}': "560+15x20"},
        kept={'oldest_due_seconds{queue="operations"}': "0 2 9 0x17"},
    ),
    Promise(
        name="CommandWaits",
        expression=f"{_due('commands')} > 900",
        severity="ticket",
        summary="A command of a merchant or operator has waited for a quarter of an hour.",
        meaning="A command waits for an open operation, for a gateway whose circuit is open, or for a worker.",
        look_at="`orchestrator commands show ID`, and `orchestrator checkouts explain ID` of its checkout.",
        do="Follow `OperationUnclear`, `CircuitOpen` or `WorkStandsStill`, whichever fires beside it.",
        broken={'oldest_due_seconds{queue="commands"}': "890+15x20"},
        kept={'oldest_due_seconds{queue="commands"}': "0 3 0x18"},
    ),
    Promise(
        name="CallbackUnverified",
        expression=f"{_top('money_at_risk', 'currency, age', kind='callback', age='!=under_10m')} > 0",
        severity="page",
        summary="A proven callback has not been verified with the gateway for ten minutes: a paid order may be open.",
        meaning="The gateway told us of a payment, and no lookup has confirmed it. The shopper may have paid, and the shop does not know.",
        look_at="`orchestrator checkouts list --state callback_received`, then `explain` of the oldest.",
        do="Where the circuit of its gateway is open, wait for the gateway. Else `orchestrator checkouts reconcile ID`.",
        broken={'money_at_risk{currency="DKK",kind="callback",age="10m_to_1h"}': "139x20"},
        kept={'money_at_risk{currency="DKK",kind="callback",age="under_10m"}': "139x20"},
        fires=({"currency": "DKK", "age": "10m_to_1h"},),
    ),
    Promise(
        name="CircuitOpen",
        expression=f"{_top('circuit_open_seconds', 'gateway')} > 30",
        lasts="0s",
        severity="page",
        summary="A gateway has not served calls for half a minute.",
        meaning="Its calls fail one after the other (no connection, silence, HTTP 5xx), so workers call it rarely. Orders and callbacks are kept, and continue by themselves.",
        look_at="`orchestrator doctor`: the line `gateway` has the last failure, since when, and when calls start again.",
        do="Look at the gateway and the way to it: `curl -sv` of its address from where the workers run shows whether name, connection or certificate is what fails. An HTTP status in the last failure is the gateway's own answer, also where its start page works: write to its support since when, which status, and which calls (`sum by (call, outcome) (increase(orchestrator_gateway_calls_total[5m])) > 0`); then wait. There is nothing to repeat afterwards: the first call that works closes the circuit. The alert may begin, or stay, for up to half a minute after that.",
        broken={'circuit_open_seconds{gateway="https://gw:443"}': "0+15x20"},
        kept={"circuit_open_seconds": "_x20"},
        fires=({"gateway": "https://gw:443"},),
    ),
    Promise(
        name="CredentialsRefused",
        expression=f"{_top('attention', code='gateway_credentials')} > 0",
        lasts="0s",
        severity="page",
        summary="A gateway refuses a merchant's user name or password.",
        meaning="Every order of this merchant waits. The gateway itself works: it answers 401.",
        look_at="`orchestrator merchants check NAME`; `orchestrator checkouts list --attention gateway_credentials`.",
        do="Change the password with `orchestrator merchants password NAME`, which asks for it, or the user name with `orchestrator merchants set NAME --username USER`, which asks for the password, too. Where the merchant is `default` and its account is that of the settings: change `ORCHESTRATOR_GATEWAY_USERNAME` and `ORCHESTRATOR_GATEWAY_PASSWORD`, and restart the workers. Orders go on within a minute.",
        broken={'attention{code="gateway_credentials"}': "0 3x19"},
        kept={'attention{code="late_payment"}': "1x20"},
    ),
    Promise(
        name="DecisionsWait",
        expression=f"{_top('attention_oldest_seconds', 'code')} > 3600",
        severity="ticket",
        summary="A checkout has needed a decision for more than an hour.",
        meaning="Its money or its order waits for a person; the code says why.",
        look_at="`orchestrator checkouts list --attention CODE`.",
        do="The chapter of the code in [runbook.md](runbook.md).",
        broken={'attention_oldest_seconds{code="late_payment"}': "3590+15x20"},
        kept={'attention_oldest_seconds{code="late_payment"}': "1800x20"},
        fires=({"code": "late_payment"},),
    ),
    Promise(
        name="EventsWait",
        expression=f"{_due('events')} > 60",
        severity="page",
        summary="Events have waited for a minute for their place in the feed: merchants do not see them.",
        meaning="No worker numbers them. Feeds and webhooks stand still; no event is lost.",
        look_at="`orchestrator doctor`, line `events`; logs of workers for `events_not_numbered`.",
        do="Start a worker, or repair what its log names.",
        broken={'oldest_due_seconds{queue="events"}': "30+15x20"},
        kept={'oldest_due_seconds{queue="events"}': "0 1 0x18"},
    ),
    Promise(
        name="DeliveriesLate",
        expression=f"{_due('deliveries')} > 600 or ({_top('processes', kind='deliverer')} == 0 and {_top('waiting', queue='deliveries')} > 0)",
        severity="ticket",
        summary="Events for a webhook are ten minutes late, or no deliverer is alive.",
        meaning="An endpoint of a merchant refuses or is slow, or nothing sends. The feed has every event; deliveries are tried for thirty days.",
        look_at="`orchestrator doctor`, line `webhooks`, names merchant and webhook; `orchestrator webhooks list --merchant NAME`, `orchestrator webhooks deliveries ID --merchant NAME`.",
        do="Start `orchestrator deliverer`, or write to the merchant. After a repair: `orchestrator webhooks resume ID --merchant NAME`.",
        broken={'oldest_due_seconds{queue="deliveries"}': "5x20", 'processes{kind="deliverer"}': "0x20", 'waiting{queue="deliveries"}': "2x20"},
        kept={'oldest_due_seconds{queue="deliveries"}': "5x20", 'processes{kind="deliverer"}': "1x20", 'waiting{queue="deliveries"}': "2x20"},
    ),
    Promise(
        name="WebhookOff",
        expression=f"{_top('webhooks', state='off')} > 0",
        severity="ticket",
        summary="A webhook is off: it failed for days, or answered 410.",
        meaning="It failed for five days (status `paused`): its events wait until it is resumed. Or it answered 410 (status `off`): no events wait for it from then on; the feed has them.",
        look_at="`orchestrator doctor`, line `webhooks`, names merchant and webhook; `orchestrator webhooks list --merchant NAME`.",
        do="With the merchant: `orchestrator webhooks resume ID --merchant NAME`; after a 410 also `orchestrator webhooks replay ID --last 24h --merchant NAME`, with the time since then. Or `orchestrator webhooks delete ID --merchant NAME`.",
        broken={'webhooks{state="off"}': "1x20"},
        kept={'webhooks{state="served"}': "3x20"},
    ),
    Promise(
        name="LookupsWait",
        expression=f"{_due('lookups')} > 300",
        severity="ticket",
        summary="Lookups have waited for five minutes for their merchant's budget.",
        meaning="Paid orders whose callbacks were lost complete that late.",
        look_at="`orchestrator doctor`, line `lookups`: which merchant, and how many.",
        do="`orchestrator merchants set NAME lookups_per_minute=…`; it also brings forward what waits.",
        broken={'oldest_due_seconds{queue="lookups"}': "280+15x20"},
        kept={'oldest_due_seconds{queue="lookups"}': "0 20 0x18"},
    ),
    Promise(
        name="IntentsWait",
        expression=(
            f"max by (queue) (min_over_time({_series('broker_messages', queue='intents')}[1m]) > 0 "
            f"unless on (instance) sum by (instance) (increase({PREFIX}queued_intents_total[1m])) > 0)"
        ),
        severity="page",
        summary="Messages wait in the queue intents, and none is taken.",
        meaning="Orders that merchants published to the broker are not stored. A message is the only copy until then.",
        look_at="`orchestrator doctor`, lines `intents` and `workers`.",
        do="Workers need a key that verifies tokens and `ORCHESTRATOR_INTENTS_PREFETCH` above 0; start one, or repair Postgres.",
        broken={'broker_messages{queue="intents"}': "4x20", 'queued_intents_total{result="accepted"}': "9x20"},
        kept={'broker_messages{queue="intents"}': "4x20", 'queued_intents_total{result="accepted"}': "9+5x20"},
        fires=({"queue": "intents"},),
    ),
    Promise(
        name="ProcessTrouble",
        expression=f"{_top('process_troubles', 'kind')} > 0",
        severity="page",
        summary="A live process says that it cannot do its work.",
        meaning="It has no broker, cannot write or claim, or its dispatcher stands still.",
        look_at="`orchestrator doctor`: the line of its kind has the sentence, and the lines `broker` and `database` say whether the cause is there.",
        do=f"What the sentence names. Where it is the broker or Postgres, repair that one first: the processes connect again by themselves. A server that accepts connections and answers nothing may be stopped: `ps -eo pid,stat,args | grep -E '[r]edis|[v]alkey|[b]eam|[p]ostgres'` on its host shows the state `T`, and `kill -CONT PID` lets it go on; of several the one is ours whose port doctor names (`ss -ltnp` shows the process of each port). {_AFTERWARDS} Where both are well and a worker or scheduler is still missing, follow `NoWorker`. Another process: start it anew. Its leases end by themselves.",
        broken={'process_troubles{kind="worker"}': "0 1x19"},
        kept={'process_troubles{kind="worker"}': "0x20"},
        fires=({"kind": "worker"},),
    ),
    Promise(
        name="Degraded",
        expression=f"{_top('problems')} > 0",
        lasts="1m",
        severity="ticket",
        summary="`/readyz` names a problem; `orchestrator doctor` says which.",
        meaning="Something is not well that no other rule may see, such as a revoked right or a broker that takes no hints.",
        look_at="`orchestrator doctor`.",
        do="What it says at the line with `problem`.",
        broken={"problems": "0 1x19"},
        kept={"problems": "0x20"},
    ),
    Promise(
        name="ClockDiffers",
        expression=f"max by (kind) (abs({PREFIX}clock_difference_seconds)) > 5",
        severity="ticket",
        summary="The clocks of Postgres and of the host of a process differ by more than five seconds.",
        meaning="Leases and deadlines use Postgres's clock and stay right; signatures of callbacks and webhooks and tokens use the host's, and may be refused.",
        look_at="`orchestrator doctor`, line `clock`: it has the process, and its host.",
        do="Set both by NTP.",
        broken={'clock_difference_seconds{kind="worker"}': "-40x20"},
        kept={'clock_difference_seconds{kind="worker"}': "0.2x20"},
        fires=({"kind": "worker"},),
    ),
    Promise(
        name="LeasesLost",
        expression=f"max(increase({PREFIX}lease_losses_total[5m])) > 20",
        lasts="0s",
        severity="ticket",
        summary="Workers lose leases: they do work that others repeat.",
        meaning="Steps take longer than a lease: a worker gets too little CPU, or Postgres is slow. Nothing is moved twice.",
        look_at="`orchestrator_batch_seconds`, CPU of workers, `leases_not_renewed` in their logs.",
        do="More CPU or fewer checkouts in flight (`ORCHESTRATOR_IN_FLIGHT_LIMIT`).",
        broken={"lease_losses_total": "0+10x20"},
        kept={"lease_losses_total": "3x20"},
    ),
    Promise(
        name="IntakeFails",
        expression=_burn(
            _series("http_requests_total", route=_INTAKE),
            bad=_series("http_requests_total", route=_INTAKE, status="=~5.."),
            objective=0.999,
        ),
        lasts="0s",
        severity="page",
        summary="Orders or callbacks are answered with an error of ours: 99.9 % are promised.",
        meaning="More than 1.4 % of them failed in the last two minutes and in the last five.",
        look_at="`orchestrator_http_requests_total` by route and status; logs of the API: `request_failed`, `database_away`.",
        do="Follow `DatabaseAway` where it fires, too. Shops may send orders again: the same order is the same checkout.",
        broken={
            'http_requests_total{method="POST",route="/v1/checkouts",status="503"}': _counted(0, 10),
            'http_requests_total{method="POST",route="/v1/checkouts",status="202"}': _counted(100, 90),
        },
        after_an_hour=True,
        kept={
            'http_requests_total{method="POST",route="/v1/checkouts",status="503"}': "1x20",
            'http_requests_total{method="POST",route="/v1/checkouts",status="202"}': "0+100x20",
        },
    ),
    Promise(
        name="OffersLate",
        expression=_burn(
            _series("offer_seconds_count"), good=_series("offer_seconds_bucket", le="10.0"), objective=0.99
        ),
        lasts="0s",
        severity="page",
        summary="Shoppers wait for more than ten seconds for their payment page: 99 % within that time are promised.",
        meaning="From an order's intake to its offer: the gateway is slow, or workers have too much to do.",
        look_at="`orchestrator_gateway_call_seconds` by call, `orchestrator_waiting`, CPU of workers.",
        do="Add workers where work waits; where calls are slow, it is the gateway. After a repair it may fire for some minutes more, as orders that had waited are offered late.",
        broken={'offer_seconds_bucket{le="10.0"}': _counted(100, 50), "offer_seconds_count": _counted(100, 100)},
        after_an_hour=True,
        kept={'offer_seconds_bucket{le="10.0"}': "0+100x20", "offer_seconds_count": "0+100x20"},
    ),
    Promise(
        name="CallbacksLate",
        expression=_burn(
            _series("callback_lag_seconds_count"), good=_series("callback_lag_seconds_bucket", le="10.0"), objective=0.99
        ),
        lasts="0s",
        severity="page",
        summary="Callbacks are handled after more than ten seconds: 99 % within that time are promised.",
        meaning="Shops hear of payments late. Callbacks are stored, and none is lost.",
        look_at='`orchestrator_oldest_due_seconds{queue="callbacks"}`, `orchestrator_gateway_call_seconds{call="find_payments"}`.',
        do="As for `OffersLate`.",
        broken={'callback_lag_seconds_bucket{le="10.0"}': _counted(100, 50), "callback_lag_seconds_count": _counted(100, 100)},
        after_an_hour=True,
        kept={'callback_lag_seconds_bucket{le="10.0"}': "0+100x20", "callback_lag_seconds_count": "0+100x20"},
    ),
    Promise(
        name="GatewayFails",
        expression=_burn(
            _series("gateway_calls_total"),
            bad=_series("gateway_calls_total", outcome="=~unknown|not_sent"),
            objective=GATEWAY_OBJECTIVE,
        ),
        lasts="0s",
        severity="ticket",
        summary="More than one call in seven to the gateways has no usable answer.",
        meaning="The gateway answers some calls and fails others, so that no circuit opens. Steps are repeated with pauses; money calls are looked up.",
        look_at="`orchestrator_gateway_calls_total` by gateway, call and outcome; `gateway_called` in logs of workers has the reasons.",
        do="Where reasons are of the network (`connect`, `tls`, `timeout`), look at the way to the gateway first, as in `CircuitOpen`. Else write to the gateway with times and calls; nothing is to be repeated by hand.",
        broken={
            'gateway_calls_total{gateway="g",call="authenticate",outcome="unknown"}': _counted(0, 50),
            'gateway_calls_total{gateway="g",call="authenticate",outcome="done"}': _counted(100, 50),
        },
        after_an_hour=True,
        kept={
            'gateway_calls_total{gateway="g",call="authenticate",outcome="unknown"}': "0+1x20",
            'gateway_calls_total{gateway="g",call="authenticate",outcome="done"}': "0+99x20",
        },
    ),
    Promise(
        name="FiguresMissing",
        expression=f"{_top('reading_age_seconds', 'group', group='=~now|waiting')} > 75 and on () min({PREFIX}database_up) == 1",
        severity="page",
        summary="What waits is not known: alerts on ages and money get no data.",
        meaning="The statements of this group of figures have failed, and its figures are not shown; or they take very long, and its figures are old. Alerts that use them are silent or late, whatever happens.",
        look_at="Log of the API: `metrics_not_read` has the reason; `pg_stat_activity` for `orchestrator-metrics`: what it waits for. Until then `orchestrator doctor` and `orchestrator status`.",
        do="End the session that holds the lock, or repair what the log names.",
        broken={'reading_age_seconds{group="waiting"}': "0+15x20", "database_up": "1x20"},
        kept={'reading_age_seconds{group="waiting"}': "12x20", "database_up": "1x20"},
        fires=({"group": "waiting"},),
    ),
    Promise(
        name="FiguresOld",
        expression=f"{_top('reading_age_seconds', 'group')} > 300",
        severity="ticket",
        summary="Figures are more than five minutes old.",
        meaning="The statement that reads them takes very long: Postgres is busy, or tables are large beyond what was measured.",
        look_at="Log of the API: `metrics_not_read`; `pg_stat_activity` for `orchestrator-metrics`.",
        do="Give Postgres more memory; scrape one API process only.",
        broken={'reading_age_seconds{group="books"}': "290+15x20"},
        kept={'reading_age_seconds{group="books"}': "12x20"},
        fires=({"group": "books"},),
    ),
)  # fmt: skip
