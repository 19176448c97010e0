"""The mda actor."""
