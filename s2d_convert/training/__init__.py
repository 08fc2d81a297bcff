"""Training of a staged network: the loop, distillation, exit heads, closed-form solving."""
