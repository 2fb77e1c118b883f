"""What a shop in production does without: the sandbox gateway, demo, benchmark, and servers on
this machine.
"""
