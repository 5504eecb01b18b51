"""What can be seen of tasks while they run, and what comes along with them: progress, log records,
output, context variables.

    progress ─► bars                   how far a call of the map family is; draws it, on a thread
    rates                              how fast it goes; times and rates as text

    in the worker   attachment ─► log_sender, output_sender ─► frames ─► a pipe of the worker's own
    in the pool     receiver ◄─ streams ◄─┘      reads all pipes, always, on a thread
                      └─► emitter                calls what is the user's, on another thread
    settings                           what a user asks for; what a worker is told of it

    context                            context variables of the caller, for the task

None of it is imported unless somebody asks for it. It knows nothing of jobs, workers and the pool's
state: it is told a number and a name, counts from a protocol, and descriptors. Nothing here is ever
called with the pool's lock held that could wait or that runs a user's code.
"""
