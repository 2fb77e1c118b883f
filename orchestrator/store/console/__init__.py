"""What the operations console stores and reads: `sessions`, `actions` (what users did),
`approvals`, `runs` (bulk actions), `overview`, and `lists`.

Nothing here moves a checkout. Each statement reads a bounded number of rows, whatever the tables hold.
"""
