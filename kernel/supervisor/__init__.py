"""The kernel's process: it makes the channels, sees who ends, and does what is decided."""
