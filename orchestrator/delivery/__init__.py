"""Events to merchants' endpoints: which are due, how many at a time, with which signature, and to which
addresses.

An event is sent at least once, with the same id each time, and the events of one checkout in the order of
their sequence. Nothing here moves a checkout, and no checkout waits for a delivery.
"""
