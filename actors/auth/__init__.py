"""The auth actor."""
