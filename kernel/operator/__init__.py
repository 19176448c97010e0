"""What an operator asks of a running server: control socket, status, traces."""
