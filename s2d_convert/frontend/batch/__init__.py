"""Let a model that was written for one length of the batch take any."""
