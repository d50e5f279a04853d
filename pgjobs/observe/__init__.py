"""What looks at jobs and queues and changes nothing."""
