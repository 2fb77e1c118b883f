"""Everything on one machine: the processes of `orchestrator up`, and finding them again from another
terminal.

`Up` starts servers, sandbox, API, workers and scheduler below one data directory, keeps them running and ends
them; none of them outlives it, whatever ends it. Generated or chosen values (keys, ports, URLs) are in the
data directory, readable by its owner alone, so that the next start continues the same installation and
`attach` lets the operator's commands find it.

    up.py            the processes from start to end: `Options`, `Up`, `run`
    child.py         a single process, and whether it is well
    servers/         Postgres and Redis as child processes
    runtime_file.py  what runs here, for other commands: `attach`, `configured`
    keys.py          generated secrets
    terminal.py      what is shown
"""
