"""The server. The files here are its shell: configuration, sockets, processes, time."""
