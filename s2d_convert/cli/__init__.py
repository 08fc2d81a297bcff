"""The command line. Only its modules write to the terminal."""
