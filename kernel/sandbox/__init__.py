"""Restrict processes by promises and unveiled paths: pledge(2) and unveil(2), or seccomp and Landlock."""
