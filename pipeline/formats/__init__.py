"""Reading files that strangers made."""
