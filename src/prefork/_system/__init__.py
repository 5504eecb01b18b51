"""All that touches the operating system: processes, descriptors, signals, memory.

It knows nothing of jobs, workers or pools.
"""
