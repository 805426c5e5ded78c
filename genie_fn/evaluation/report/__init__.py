"""The evaluation as an HTML page, tables and pictures."""
