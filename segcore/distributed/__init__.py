"""Several devices and hosts: mesh, rendezvous, heartbeats, collectives."""
