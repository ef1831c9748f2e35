"""The rules of requests, a module for each part of the contract. No I/O."""
