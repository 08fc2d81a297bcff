"""What else is done with models and exported folders: inspect, split, calibrate, profile."""
