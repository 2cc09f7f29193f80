"""The experiments of the papers, a module and a command each: ``python -m experiments``."""
