"""The nouns, the errors, and what every room needs."""
