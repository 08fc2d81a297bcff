"""The staged network in torch: one masked forward pass gives all exits."""
