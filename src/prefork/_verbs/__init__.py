"""All that has functions called: what a pool and a view of it have in common.

view               `Verbs`, which is all of the following; the same pool with other limits
calls              one call; several calls as one job
maps, lazy_maps    many calls of one function; results together, or one by one
async_inputs       an async iterable as input; imported when one is given
executors          `concurrent.futures.Executor`; imported when asked for
futures            results as `concurrent.futures` has them; imported when asked for
family             what they share
pool_options       what a pool is asked for, checked
signatures         types of functions and their arguments
"""
