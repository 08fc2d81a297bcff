"""The command line; its modules are the only ones that speak."""
