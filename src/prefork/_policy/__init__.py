"""What decides: who gets which job, what is due when, how input is divided.

No I/O, no clock, no threads: the time is an argument, and a test can call each decision.
"""
