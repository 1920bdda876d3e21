"""Programs that nobody has read, such as those that a model wrote, run where they can do no harm.

A program gets a process of its own: no network, a file system that it can only read but for a folder of its own,
limits on time, memory, processes and file sizes, no environment, no open files of ours. Where the system allows no
namespaces, what is left are those limits and Python's own hooks, which stop accidents and not an attacker; the outcome
says which barriers stood.
"""

from nett.core.confined.parent import Limits, Outcome, run_program

__all__ = ["Limits", "Outcome", "run_program"]
