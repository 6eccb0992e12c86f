"""The ServerApp: starts the peers and collects numbers; see p2pft_flower.flower.server."""

from p2pft_flower.flower.server import make_server_app

app = make_server_app()
