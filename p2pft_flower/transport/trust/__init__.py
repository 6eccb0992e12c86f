"""Who is who: certificates, and connections that prove them."""
