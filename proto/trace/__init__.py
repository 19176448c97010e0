"""Recordings, and what a trace may show. Pure."""
