"""For the process that all peers are copies of: it reads the images once, and none of its copies needs to.

To read them, each would import scikit-learn, which takes as long as all the rest of what a peer does.
"""

from __future__ import annotations

from tests.faults.digits import read_images

read_images()
