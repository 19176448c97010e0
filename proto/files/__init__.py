"""File formats: tables, popcache, maildir names, UIDL lists, certificates. Pure."""
