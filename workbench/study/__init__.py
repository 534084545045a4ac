"""Studies: models trained and analysed end to end, by jobs that are done once, and what the findings are."""
