"""The first page of a report, in words and tables."""
