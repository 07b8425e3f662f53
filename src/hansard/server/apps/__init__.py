"""Endpoints of apps that were written for other servers."""
