"""Peer-to-peer fine-tuning of vision transformers, as an extension of Flower."""

from __future__ import annotations

__version__ = "0.1.0"
