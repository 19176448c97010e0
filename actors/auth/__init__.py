"""Check passwords and tokens: the auth actor."""
