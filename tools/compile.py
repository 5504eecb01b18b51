"""Compile modules with mypyc: `python compile.py MODULE.py …`, in the folder of their package.

Each module's extension comes to lie beside it, and more in the current folder: so it is run on a
copy. It has a process of its own, since the compiler prints and exits as it likes.
"""

from __future__ import annotations

import os
import sys

import setuptools  # type: ignore[import-untyped]  # before mypyc, which looks whether it is there
from mypyc.build import mypycify

# The library with the code of all modules. In the package: beside it, it would be one more name in
# everybody's site-packages. Each module is an extension of its own that takes its part from there.
LIBRARY = "prefork._native"

MYPY_OPTIONS = [
    "--config-file=",  # a user's own settings are not meant for this
    "--follow-imports=silent",  # the other modules count for their types; `make lint` checks them
    "--ignore-missing-imports",
]

# A newer C compiler that warns of more shall not make the build fail.
COMPILER_OPTIONS = ["-Wno-error"]


def main(modules: list[str]) -> None:
    extensions = mypycify(
        [*MYPY_OPTIONS, *modules],
        opt_level="3",
        debug_level="0",
        group_name=LIBRARY,
        target_dir="c",
    )
    for extension in extensions:
        extension.extra_compile_args.extend(COMPILER_OPTIONS)
    distribution = setuptools.Distribution({"name": "prefork", "ext_modules": extensions})
    build = distribution.get_command_obj("build_ext")
    build.build_lib = "."
    build.build_temp = "objects"
    build.parallel = min(os.cpu_count() or 1, 4)
    build.ensure_finalized()
    build.run()


if __name__ == "__main__":
    main(sys.argv[1:])
