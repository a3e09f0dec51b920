"""What a run leaves behind: metrics, progress, a summary, a table, figures and one HTML page."""
