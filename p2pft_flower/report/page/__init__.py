"""The report of runs: one page that opens offline, made of results, journals and answers to test images."""
