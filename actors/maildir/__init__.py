"""Serve one user's maildrop: the maildir actor."""
