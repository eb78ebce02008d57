"""Charts as SVG, for the report."""
