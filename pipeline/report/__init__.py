"""What a run tells: status, page, verification, licenses."""
