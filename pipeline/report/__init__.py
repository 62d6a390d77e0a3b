"""Reports on a run: status, page, verification, licenses."""
