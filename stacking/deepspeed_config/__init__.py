"""DeepSpeed configurations as people have them: read, checked against the installed version, translated."""
