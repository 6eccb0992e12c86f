"""The thin layer that adapts the peer runtime to Flower's ClientApp and ServerApp."""
