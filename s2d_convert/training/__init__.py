"""Trainings of a staged network: the loop, distillation, exit heads."""
