"""Films, plots and pages."""
