"""Learning: models and their trained part, datasets and the peers' shares, the peers' objectives."""

from p2pft_flower.learning.light_timm import import_timm_light

import_timm_light()
