"""What programs expect of a pool because `multiprocessing`'s has it: its classes, and names of its
inside that they read; and hints for habits from elsewhere. (Its contexts are in `contexts`.)
"""
