"""Passes over a model of protobufs: what is taken away, refused, or put into simpler words."""
