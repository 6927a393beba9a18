"""Small servers made with other frameworks, as their documentation advises for this work.

Each is a program of its own environment: MODEL, REST_PORT and GRPC_PORT are in its environment, and
all decode with our `prepare`, so that servers are compared and not decoders.
"""
