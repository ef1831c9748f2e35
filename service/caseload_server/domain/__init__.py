"""The types of the domain: records, requests, results, enums, errors and limits. Imports nothing of this project."""
