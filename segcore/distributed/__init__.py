"""Device mesh, rendezvous of hosts, heartbeats."""
