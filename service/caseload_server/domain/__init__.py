"""The words of the domain: records, requests, results, errors and limits. Imports nothing of this project."""
