"""Reads users' DeepSpeed configurations, checks them against the installed version and translates them."""
