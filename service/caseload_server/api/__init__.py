"""The servicers, one module for each service of the contract. They validate, call the store and convert the result."""
