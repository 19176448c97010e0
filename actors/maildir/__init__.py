"""The maildir actor."""
