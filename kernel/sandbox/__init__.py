"""pledge(2) and unveil(2): OpenBSD's own calls there, seccomp and Landlock on Linux."""
