"""What the operations console stores and reads: `sessions` of persons, `actions` (what persons did),
`approvals`, `runs` (bulk actions), `overview`, and `lists`.

Nothing here moves a checkout. Each statement reads a bounded number of rows, whatever the tables hold.
"""
