"""Accept mail over LMTP and have it delivered: the mda actor."""
