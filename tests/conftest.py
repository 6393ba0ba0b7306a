"""What all tests share."""

from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

OWN_SERVERS = ("tests/server/test_distribution.py", "tests/server/test_faults.py")
"""They start servers of their own more than they use the shared ones."""


def pytest_xdist_make_scheduler(config, log):
    """Tests that share servers stay in one process, else those of a file."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "servers" if file.startswith("tests/server/") and file not in OWN_SERVERS else file

    return Scheduling(config, log)
