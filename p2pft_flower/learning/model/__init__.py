"""Models: their weights, what of them is tuned, trunk and tail, and the files that runs leave."""
