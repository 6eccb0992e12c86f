"""The thin layer that adapts hosts and coordinator to Flower's ClientApp and ServerApp."""

import gc

# Flower has imported some 1,500 modules by now, which stay. The collector need not go through them, again and
# again, while the rest is imported: that is a quarter of what the import takes.
gc.freeze()
