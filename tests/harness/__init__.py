"""What the live tests are made of: real nodes, a proxy that breaks things, clients, a checker."""
