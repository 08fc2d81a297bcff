"""The report of an exported folder: an HTML page with charts and pictures."""
