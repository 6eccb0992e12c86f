"""The ClientApp: runs the peers of its plan; see p2pft_flower.flower.client."""

from p2pft_flower.flower.client import make_client_app

app = make_client_app()
