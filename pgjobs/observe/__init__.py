"""Reads jobs and queues, and changes nothing: lists, counts and the numbers of queues."""
