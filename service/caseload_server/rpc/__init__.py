"""The gRPC server and what surrounds each call."""
