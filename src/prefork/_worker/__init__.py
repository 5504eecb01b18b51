"""What runs in a worker process: initialise, then receive, run, report until told to leave."""
