"""One running pool: `engine` makes its parts and wires them, and they do the work.

It knows nothing of the faces above: not of `Pool`, nor of any other class that users make.
"""
