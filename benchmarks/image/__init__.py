"""The images without a container engine: built, weighed and tried out from the Dockerfiles themselves."""
