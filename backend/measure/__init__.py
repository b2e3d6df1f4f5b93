"""From joined rows to summaries."""
