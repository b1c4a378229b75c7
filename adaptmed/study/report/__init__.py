"""The report of a study: one page of HTML with tables, plots and pictures."""
