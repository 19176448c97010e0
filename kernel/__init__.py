"""Provide processes, channels, sandbox and supervision to the actors; import none of them."""
