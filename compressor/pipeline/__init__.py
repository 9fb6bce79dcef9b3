"""Load, wire, plan, run.

``file`` and ``wiring`` turn text into nodes, ``keys`` and ``planning`` nodes into cache states,
``execution`` states into results, ``record`` results into a run folder.
"""
