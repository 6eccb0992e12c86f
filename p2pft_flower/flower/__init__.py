"""The thin layer that adapts hosts and coordinator to Flower's ClientApp and ServerApp."""
