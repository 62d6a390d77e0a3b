"""What strangers' files say, read without trusting them: tables, archives, and the heads of models and pictures."""
