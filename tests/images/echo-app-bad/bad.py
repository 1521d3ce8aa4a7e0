"""Versions of the stand-in that go wrong, by a word in ECHO_VERSION:

halfway    migrates the schema, fails at the next migration, and ends
crashing   gets healthy, and ends four seconds later
forgetful  starts well, but its migration drops users' rows
"""
import os
import threading

import app

WORD = app.VERSION.rpartition("-")[2]


class Bad(app.Echo):
    """Echo, but for one thing."""

    def start(self):
        super().start()
        if WORD == "halfway":
            raise SystemExit("migration 4 failed: column users.email does not exist")
        if WORD == "forgetful":
            self.transaction(lambda cursor: cursor.execute("DELETE FROM play_history"))

    def health(self):
        answer = super().health()
        if WORD == "crashing":
            threading.Timer(4, self.crash).start()
        return answer

    @staticmethod
    def crash():
        print("out of memory: killed", flush=True)
        os._exit(1)


app.Echo = Bad
app.main()
