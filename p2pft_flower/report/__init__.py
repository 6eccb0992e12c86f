"""Results of runs: the JSON file and the tables made of it."""
