"""Replay recorded actors, and compare what they send with the recording."""
