"""prefork side by side with other process pools, and with what the kernel can do at best.

    python -m benchmarks.side_by_side run       measure; writes JSON
    python -m benchmarks.side_by_side report    a table of such a file
    python -m benchmarks.side_by_side page      tables and charts of it, for the documentation

Layout, from the top:

    __main__      the command line
    rounds        one run: every pair of workload and pool, in rounds, each sample a process
    page          a run as a part of the documentation
    report        a run's tables
    charts        a run's charts
    targets       what prefork is to reach, and whether a run has it there
    summary       medians, and ratios with their spread
    sample        one sample: what runs in a process of its own
    workloads     what is measured, with whom
    measures      how it is measured: calls, tasks that take time, the pool's own costs
    faces         by other interfaces
    objects       large objects, and many
    observing     what it costs to watch tasks
    floors        the same work with no pool: as little as the kernel allows
    peers         the pools
    frameworks    joblib, Ray, Dask
    peer          the small interface that each is behind
    family        the end of a sample, and of all that it has started
    meters        CPU time, memory and wake-ups of a process and its descendants
    memory        the most memory that a family of processes had: a program of its own
    tasks         what the workers are given to do
"""
