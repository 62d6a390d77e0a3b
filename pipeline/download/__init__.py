"""Downloads: from a URL to a verified file."""
