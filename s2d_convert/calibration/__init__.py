"""Thresholds and temperatures from logits, policies for a row of budgets, and risk control."""
