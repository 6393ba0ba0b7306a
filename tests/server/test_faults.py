"""An error anywhere in drafting, learning or policy leaves every request right and drafting off."""

import pytest

from .support import body, prompts


@pytest.mark.parametrize("where", ["step", "observe_drafts", "finish"])
def test_an_error_turns_drafting_off_and_nothing_else(servers, faulty_server, where):
    wanted = [body(prompt, temperature=0.8, seed=i) for i, prompt in enumerate(prompts(8, seed=20))]
    reference = servers("plain").tokens(wanted)
    with faulty_server(f"raise:{where}", after=3) as client:
        assert client.tokens(wanted) == reference
        assert client.tokens(wanted) == reference
        state = client.das()
        assert state["failures"] == 1
        assert state["state"].startswith("off (error in ")
        assert "injected into" in state["state"]
        assert "decoding goes on without drafts" in client.log_text()
