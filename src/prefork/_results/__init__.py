"""What callers hold while their jobs run: handles, and iterators over results.

It knows of the pool no more than `protocols` says.
"""
