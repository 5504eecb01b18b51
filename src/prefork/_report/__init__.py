"""What a recording tells, and the page that is made of it.

It is fed with what has happened, and knows neither pools nor workers: only process ids, times and
names. What it keeps is bounded, however much it is fed with.
"""
