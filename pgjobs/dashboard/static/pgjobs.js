// Refreshes the live part of a page, and helps with bulk selections. Every page works without it.
