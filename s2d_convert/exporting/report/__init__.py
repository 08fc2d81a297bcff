"""The report of an exported folder: one HTML page with pictures."""
