"""The binary: what it says, how it stops, and mistakes of its user's."""

import signal
import threading

from serving.serving_tools import get, post, running_server, user
from tiny_run import run_module


def test_it_says_where_and_what_it_serves_finishes_what_has_begun_and_stops(checkpoint):
    with running_server(checkpoint, "--rows=2", "--context=64") as (process, address, said):
        assert "tiny:lightning, tiny:pro" in said and "conversations are logged: no" in said
        assert not address.endswith(":0")
        answers = []

        def ask():
            body = {"model": "tiny:pro", "messages": user("hi"), "n": 16, "temperature": 0}
            answers.append(post(address, "/v1/chat/completions", body))

        thread = threading.Thread(target=ask)
        thread.start()
        while not get(address, "/health")[2]["running"] and not answers:
            pass
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0][0] == 200 and len(answers[0][2]["choices"]) == 16
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == "stopped\n"
        assert "Traceback" not in process.stderr.read()


def test_an_address_of_another_machine_is_refused_in_one_line(checkpoint):
    done = run_module("mmrl.serve", f"--checkpoint={checkpoint}", "--host=203.0.113.1", "--port=0")
    assert done.returncode == 2
    assert "cannot listen on 203.0.113.1:0" in done.stderr and "Traceback" not in done.stderr
