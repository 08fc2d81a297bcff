"""The other work on models and exported folders: inspect, split, calibrate, profile."""
