"""Proofs of identity: certificates, signatures, and connections by TLS."""
