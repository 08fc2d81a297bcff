"""Measurements: everything here prints or writes numbers; nothing is asserted."""
