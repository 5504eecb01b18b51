"""joblib's parallel loops, and so scikit-learn's, in this pool.

    import prefork.joblib

    with joblib.parallel_config(backend="prefork", timeout=60):
        search.fit(X, y)

The import registers the backend; its options are those of `prefork.joblib.Options`. Functions go to
the workers by value where pickle knows no name for them, and workers do not import `__main__`.

    backend            what joblib asks a backend for
    batch              what joblib hands in at once, and what becomes of it
    search             scikit-learn's account of candidates that were lost
    workers            the pool that is kept from call to call
    arrays, pickling   what travels
    options            what may be given
"""

from joblib import register_parallel_backend

from prefork.joblib.backend import PreforkBackend
from prefork.joblib.options import Options
from prefork.joblib.workers import shutdown

__all__ = ["Options", "PreforkBackend", "shutdown"]

register_parallel_backend("prefork", PreforkBackend)
