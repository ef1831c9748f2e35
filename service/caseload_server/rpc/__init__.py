"""The gRPC server, and the layer around each call: executors, load shedding, authorization, logging and statuses."""
