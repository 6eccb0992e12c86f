"""Learning: models and their trained part, datasets and the peers' shares, the peers' objectives."""

import os

# Before torch computes, since MKL reads it once. Without it the product of two small matrices depends, on
# processors without AVX-512, on where in memory they begin, and so a peer's gradient on the peers that are
# computed beside it (invariant 2 of docs/architecture.md; findings/torch_bmm_depends_on_the_place.sh).
os.environ.setdefault("MKL_CBWR", "AUTO")

from p2pft_flower.learning.light_timm import import_timm_light

import_timm_light()
