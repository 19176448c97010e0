"""Who may have how much: fair shares, networks, user names. Pure."""
