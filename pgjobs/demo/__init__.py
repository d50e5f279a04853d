"""The program behind `pgjobs demo`.

`app.py` is an application as a user would write it: its tables, its job, its handler. Read it first. `story.py` runs
it with two worker processes, kills one of them in the middle of a job, and counts what was lost or done twice.
"""
