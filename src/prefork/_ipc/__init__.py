"""What travels between the pool and a worker, and the channel that it goes through.

It knows neither the pool nor what a job is for.
"""
