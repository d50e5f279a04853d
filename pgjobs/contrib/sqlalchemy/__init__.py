"""SQLAlchemy: enqueue on a Session, and run handlers with a Session.

    engine = create_engine("postgresql+psycopg://localhost/app")
    client = Client(SQLAlchemySource(engine))

    def welcome(session: Session, job: Job[Welcome]) -> None:
        session.get_one(Account, job.args.account).greeted = True

Changes that are pending in the Session when the handler returns are flushed, and committed together with the job.
"""

from pgjobs.contrib.sqlalchemy.source import SQLAlchemySource

__all__ = ["SQLAlchemySource"]
