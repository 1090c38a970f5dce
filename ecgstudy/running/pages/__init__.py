"""The first page of a report, of one study or of several, in words and tables."""
