"""A server attached by URL: metrics are read as they are, commands go to its routes or are refused with the reason."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.attach import server_metrics
from rltop.backend.attach.server import FAILED_POLLS, Server, ServerError
from rltop.backend.attach.server_metrics import MetricsError
from rltop.backend.attach.server_routes import Routes
from rltop.collectors.contract import wire
from tests.support.harness import PATIENT_S, HubStandIn, wait_for

METRICS = """
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} 1e+03
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
# TYPE vllm:request_success counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 6.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
# TYPE process_open_fds gauge
process_open_fds 8.0
"""


class Desk(BaseHTTPRequestHandler):
    """As much of vLLM's HTTP interface as is read."""

    metrics = METRICS
    dev = True
    paused = False
    flushes = True
    posted: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        pages = {
            "/metrics": self.metrics,
            "/version": json.dumps({"version": "0.32.0"}),
            "/v1/models": json.dumps({"data": [{"id": "short", "root": "/models/m", "max_model_len": 512}]}),
        }
        if self.dev:
            paths = ["/pause", "/resume", "/reset_prefix_cache", "/is_paused", "/is_sleeping", "/weight_info"]
            pages |= {
                "/openapi.json": json.dumps({"paths": {path: {} for path in paths}}),
                "/is_paused": json.dumps({"is_paused": type(self).paused}),
                "/is_sleeping": json.dumps({"is_sleeping": False}),
                "/weight_info": json.dumps({"weight_version": "step-12"}),
            }
        else:
            pages["/openapi.json"] = json.dumps({"paths": {"/metrics": {}}})
        self._answer(pages.get(self.path))

    def do_POST(self) -> None:
        kind = type(self)
        kind.posted.append(self.path)
        kind.paused = self.path.startswith("/pause") or (kind.paused and self.path != "/resume")
        self._answer(json.dumps({"success": self.flushes}))

    def _answer(self, body: str | None) -> None:
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def desk() -> Iterator[type[Desk]]:
    yield type("Desk", (Desk,), {"posted": []})


@pytest.fixture
def url(desk: type[Desk]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), desk) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def server(url: str, hub: HubStandIn) -> Iterator[Server]:
    server = Server(url, hub.rundir, lambda text: None)
    server.poll()
    wait_for(lambda: hub.knows(server.names[0]), "the engine registers")
    yield server
    server.close()


def state(server: Server, hub: HubStandIn) -> wire.EngineState:
    count = len(hub.states())
    server.poll()
    return wait_for(lambda: hub.states()[count:], "a state")[-1]


def closed(server: Server, hub: HubStandIn, command: wire.Command) -> wire.CommandUpdate:
    hub.send(server.names[0], command)
    wait_for(lambda: [one for one in list(hub.updates) if one.id == command.id], "the command arrives")
    server.poll()
    return hub.closed(command.id)


def command(name: str, verb: str, flag: str = "", value: str = "", revert_s: float | None = None) -> wire.Command:
    return wire.Command(name, flag, value, time.time() + PATIENT_S, verb, revert_s=revert_s)


def test_metrics_and_facts_are_reported_and_what_is_unknown_says_so(server: Server, hub: HubStandIn) -> None:
    shown = state(server, hub)
    assert (shown.running, shown.waiting, shown.kv_usage, shown.generated_tokens) == (3, 2, 0.5, 1000)
    assert (shown.preemptions, shown.finished, shown.aborted) == (4, 5, 1)
    assert (shown.first_token_s, shown.first_tokens, shown.token_gaps) == (1.5, 6, 0)
    assert (shown.policy_version, shown.version_source, shown.weight_label) == (12, "engine", "step-12")
    assert (shown.fingerprint["vllm_version"], shown.fingerprint["model"]) == ("0.32.0", "/models/m")
    assert {flag.detail for flag in shown.flags.values()} == {"unknown"}
    assert not any(flag.switchable for flag in shown.flags.values())


def test_a_pause_resumes_on_command_when_its_time_is_over_and_when_the_process_ends(
    server: Server, hub: HubStandIn, desk: type[Desk]
) -> None:
    update = closed(server, hub, command("p1", "pause", revert_s=60.0))
    assert (update.state, update.new) == ("applied", "paused")
    assert desk.posted == ["/pause?mode=keep&clear_cache=false"]
    shown = state(server, hub)
    assert (shown.paused, [timer.command for timer in shown.timers]) == (True, ["p1"])
    assert closed(server, hub, command("r1", "resume")).new == "running"
    assert not state(server, hub).paused
    closed(server, hub, command("p2", "pause", revert_s=0.01))
    wait_for(lambda: not state(server, hub).paused, "the timer resumes")
    assert hub.closed("p2/revert").reverts == "p2"
    closed(server, hub, command("p3", "pause"))
    server.close()
    assert desk.posted[-1] == "/resume"
    assert desk.posted.count("/resume") == 3


def test_another_clients_pause_is_left_alone(server: Server, hub: HubStandIn, desk: type[Desk]) -> None:
    desk.paused = True
    for name, verb in (("p1", "pause"), ("r1", "resume")):
        update = closed(server, hub, command(name, verb))
        assert (update.state, update.reason) == ("refused", "paused by another client, who has to end it")
    assert desk.posted == []


def test_a_flush_is_what_vllm_answers(server: Server, hub: HubStandIn, desk: type[Desk]) -> None:
    assert closed(server, hub, command("f1", "flush_cache")).state == "applied"
    desk.flushes = False
    update = closed(server, hub, command("f2", "flush_cache"))
    assert update.state == "refused"
    assert "while no request uses a block" in update.reason


@pytest.mark.parametrize("verb", ["set", "keep", "probe", "dance"])
def test_what_needs_the_plugin_is_refused_with_the_reason(server: Server, hub: HubStandIn, verb: str) -> None:
    update = closed(server, hub, command("c1", verb, "prefix_caching", "off"))
    assert update.state == "refused"
    assert "only the plugin" in update.reason


def test_a_late_command_times_out_and_a_repeated_one_is_answered_once(
    server: Server, hub: HubStandIn, desk: type[Desk]
) -> None:
    assert closed(server, hub, wire.Command("late", "", "", time.time() - 1, "flush_cache")).state == "timed_out"
    assert desk.posted == []
    for _ in range(2):
        closed(server, hub, command("f1", "flush_cache"))
    assert desk.posted == ["/reset_prefix_cache"]


def test_without_development_routes_a_command_is_refused_with_the_variable(
    url: str, hub: HubStandIn, desk: type[Desk]
) -> None:
    desk.dev = False
    server = Server(url, hub.rundir, lambda text: None)
    server.poll()
    wait_for(lambda: hub.knows(server.names[0]), "the engine registers")
    for number, verb in enumerate(("pause", "resume", "flush_cache")):
        assert "VLLM_SERVER_DEV_MODE=1" in closed(server, hub, command(f"c{number}", verb)).reason
    assert (state(server, hub).policy_version, desk.posted) == (None, [])
    server.close()


def test_a_server_that_stops_answering_is_reported_as_exited_and_comes_back(
    server: Server, hub: HubStandIn, desk: type[Desk]
) -> None:
    desk.metrics = "nonsense {"
    for _ in range(FAILED_POLLS):
        assert not hub.byes
        server.poll()
    assert [bye.source for bye in hub.byes] == server.names
    desk.metrics = METRICS
    assert state(server, hub).running == 3
    assert len({envelope.epoch for envelope, _, _ in hub.messages}) == 2


def test_a_server_that_accepts_and_never_answers_is_reported_as_exited(
    server: Server, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rltop.backend.attach.server.METRICS_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as held:  # as by a child of a killed server
        server.routes = Routes(f"http://127.0.0.1:{held.getsockname()[1]}")
        names = server.names
        for _ in range(FAILED_POLLS):
            server.poll()
    assert len(hub.byes) == len(names) == 1


def test_each_engine_of_a_server_is_reported(url: str, hub: HubStandIn, desk: type[Desk]) -> None:
    desk.metrics = METRICS + METRICS.replace('engine="0"', 'engine="1"').replace(" 3.0", " 7.0")
    server = Server(url, hub.rundir, lambda text: None)
    server.poll()
    wait_for(lambda: len({one.engine for one in hub.states()}) == 2, "both report")
    assert {one.engine.rpartition("/")[2]: one.running for one in hub.states()} == {"dp0": 3, "dp1": 7}
    server.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://host:1", "expected an address"),
        ("http://", "expected an address"),
        ("http://host:port", "http://host:port"),
        ("http://host:99999", "http://host:99999"),
        ("http://user:secret@host", "without user"),
        ("http://host/?a=b", "without user, query"),
        ("http://127.0.0.1:9", "does not answer"),
    ],
)
def test_a_wrong_address_is_an_error_that_says_so(address: str, reason: str, hub: HubStandIn) -> None:
    with pytest.raises(ServerError, match=reason):
        Server(address, hub.rundir, lambda text: None)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/metrics"])
def test_usual_forms_of_an_address_mean_the_server(suffix: str) -> None:
    assert Routes(f"http://host:8000{suffix}").url == "http://host:8000"


def test_a_server_that_is_no_vllm_is_refused(url: str, hub: HubStandIn, desk: type[Desk]) -> None:
    desk.metrics = "process_open_fds 8.0\n"
    with pytest.raises(ServerError, match="no metrics of a vLLM engine"):
        Server(url, hub.rundir, lambda text: None)


@given(st.text())
def test_any_text_is_numbers_or_a_metrics_error(text: str) -> None:
    try:
        server_metrics.read(text)
    except MetricsError as error:
        assert str(error)


def test_older_names_of_a_series_are_read_where_the_newest_is_missing() -> None:
    lines = [
        'vllm:num_requests_running{model_name="m"} 1.0',
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.25',
        'vllm:time_per_output_token_seconds_sum{model_name="m"} 3.0',
        'vllm:time_per_output_token_seconds_count{model_name="m"} 30.0',
        'vllm:num_requests_waiting{model_name="m"} NaN',
    ]
    assert server_metrics.read("\n".join(lines) + "\n") == {
        "0": {"running": 1.0, "kv_usage": 0.25, "token_gap_s": 3.0, "token_gaps": 30.0}
    }
