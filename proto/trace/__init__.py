"""Recordings, and redaction for traces. Pure."""
