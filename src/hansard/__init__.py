"""Hansard turns a recording into who said what, word for word.

Read `pipeline` first: it is the whole way of the data. Then `transcript` (the data), `request` (what a job may
ask), `engine` (the process boundary). The doors are `handler.py` beside this package and, later, `server`.
"""

__version__ = "0.1.0"
