"""The servicers, one module for each service of the contract: validate, ask the store, convert."""
