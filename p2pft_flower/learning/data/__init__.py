"""Images: datasets, pictures from files, the peers' shares, and the order in which peers see their images."""
