"""The bench: how much an installation can process, measured with an open load against a light gateway, and
checked against its books.

It starts what `up` starts, with the light gateway instead of the sandbox and with synchronous writes to disk,
so that the product is measured as it runs. Load, gateway and product are separate processes, each with its
meter.

    run.py             one bench from start to result: warm-up, ramp, the run that counts
    setup.py           the running product, and one measurement on it
    load.py            the load's process, and what it sends when: http_pool.py
    gateway.py         the light gateway's process: documents.py, shoppers.py, latency.py
    database_probe.py  what Postgres has          ledger.py   the gateway's books; lost, doubled, unequal
    usage.py           CPU, memory, the disk      ramp.py  the highest rate held
    result.py          a run as figures           display.py  on the terminal
    report.py          as a page with charts
"""
