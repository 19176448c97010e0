"""The listener actor."""
