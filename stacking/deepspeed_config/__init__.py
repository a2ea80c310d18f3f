"""DeepSpeed configurations as users have them: read, checked against the installed version, translated."""
