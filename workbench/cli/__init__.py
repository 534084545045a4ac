"""The command line: one module a verb, each a thin wrapper of a Python function; whatever is slow to import is imported
inside the verb."""
