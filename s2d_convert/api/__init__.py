"""The functions for Python, with keyword arguments for the options of the command line, and results that show themselves.

Tables are those of `cli`, in plain text and as HTML for notebooks; while something runs, one line tells how far it is.
"""
