"""The steps of a conversion, from options to the exported folder."""
