"""Plans: which channel unit and which exit belongs to which stage, and the space that a search chooses from."""
