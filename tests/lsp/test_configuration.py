"""Settings reach the server however a client sends them, and what is wrong with them is told."""

from typing import Any

import pytest
from lsp_wire import Message, Wire, notification, session

from qcn_lsp.settings import CompletionSettings

ASKS = {"workspace": {"configuration": True}}
CHANGED = "workspace/didChangeConfiguration"


def reply(server: Wire, question: Message, **outcome: object) -> None:
    server.send({"jsonrpc": "2.0", "id": question["id"], **outcome})


def state_with(server: Wire, **expected: object) -> dict[str, Any]:
    """Return the state, which holds `expected`: what was sent before the question counts."""
    state: dict[str, Any] = server.ask("state", "test/state")
    server.messages.clear()
    assert expected.items() <= state.items()
    return state


def completion(**settings: object) -> dict[str, object]:
    return {"completion": settings}


@pytest.mark.parametrize(
    "options", [completion(maxTokens=7), {"qcn": completion(maxTokens=7)}], ids=["bare", "named"]
)
def test_options_of_initialize(options: object) -> None:
    with session(initializationOptions=options) as server:
        assert server.ask(1, "test/state")["maxTokens"] == 7


def test_a_client_that_answers_is_asked_and_what_it_leaves_out_stays() -> None:
    options = completion(maxTokens=7)
    with session(capabilities=ASKS, initializationOptions=options) as server:
        question = server.asked("workspace/configuration")
        assert question["params"] == {"items": [{"section": "qcn"}]}
        reply(server, question, result=[completion(popup=False)])
        assert state_with(server, popup=False)["maxTokens"] == 7
        # Told of a change, the server asks again, whatever the notification holds.
        server.send(notification(CHANGED, {"settings": {"qcn": completion(maxTokens=1)}}))
        question = server.asked("workspace/configuration")
        reply(server, question, result=[completion(maxTokens=9)])
        assert state_with(server, maxTokens=9)["popup"] is True


def test_of_two_questions_the_later_ones_answer_counts() -> None:
    with session(capabilities=ASKS) as server:
        first = server.asked("workspace/configuration")
        server.messages.clear()
        server.send(notification(CHANGED, {"settings": None}))
        second = server.asked("workspace/configuration")
        reply(server, second, result=[completion(maxTokens=2)])
        reply(server, first, result=[completion(maxTokens=1)])
        state_with(server, maxTokens=2)


@pytest.mark.parametrize(
    "outcome",
    [
        {"result": [None]},
        {"result": []},
        {"result": None},
        {"result": 5},
        {"error": {"code": -32601, "message": "not today"}},
        {"error": "nonsense"},
        {},
    ],
    ids=["null", "empty", "nothing", "unfit", "error", "malformed error", "neither"],
)
def test_a_client_that_does_not_tell_leaves_the_options_in_force(outcome: dict[str, Any]) -> None:
    options = completion(maxTokens=7, popup="a problem, told when all is settled")
    with session(capabilities=ASKS, initializationOptions=options) as server:
        reply(server, server.asked("workspace/configuration"), **outcome)
        server.asked("window/showMessage")
        assert server.ask(1, "test/state")["maxTokens"] == 7


def test_settings_pushed_by_a_client_that_cannot_be_asked() -> None:
    with session() as server:
        server.send(notification(CHANGED, {"settings": {"qcn": completion(maxTokens=3)}}))
        assert server.ask(1, "test/state")["maxTokens"] == 3
        server.send(notification(CHANGED, {"settings": {"other": {}}}))
        server.send(notification(CHANGED, {"settings": None}))
        assert server.ask(2, "test/state")["maxTokens"] == 3


def test_changes_are_watched_where_the_client_offers_it() -> None:
    with session("vscode") as server:
        registration = server.asked("client/registerCapability")
        assert registration["params"]["registrations"] == [
            {
                "id": "qcn-configuration",
                "method": CHANGED,
                "registerOptions": {"section": "qcn"},
            }
        ]
        reply(server, registration, error={"code": -32603, "message": "not today"})
        server.asked("workspace/configuration")


def test_a_client_without_capabilities_is_asked_nothing() -> None:
    with session() as server:
        server.send(notification(CHANGED, {"settings": {"qcn": {}}}))
        server.ask(1, "test/echo")
        assert [m for m in server.messages if "id" in m and "method" in m] == []


def test_a_problem_is_told_once_and_the_server_runs_on_the_default() -> None:
    with session(initializationOptions=completion(maxTokens="many")) as server:
        told = server.asked("window/showMessage")["params"]["message"]
        assert told.startswith("qcn.completion.maxTokens: expected")
        for _ in range(3):
            server.send(notification(CHANGED, {"settings": {"qcn": completion(maxTokens="many")}}))
        assert server.ask(1, "test/state")["maxTokens"] == CompletionSettings().max_tokens
        assert len([m for m in server.messages if m.get("method") == "window/showMessage"]) == 1


@pytest.mark.parametrize("options", ["text", 5, [1], {"completion": 3}, {"qcn": None}])
def test_options_of_any_shape_do_no_harm(options: object) -> None:
    with session(initializationOptions=options) as server:
        assert server.ask(1, "test/state")["maxTokens"] == CompletionSettings().max_tokens


def test_the_log_level_is_a_setting() -> None:
    with session(initializationOptions={"log": {"level": "error"}}) as server:
        server.send(notification("textDocument/didClose", {"textDocument": {"uri": "file:///a"}}))
        server.ask(1, "test/echo")
        assert not [m for m in server.messages if m.get("method") == "window/logMessage"]


# --- Workspace folders --------------------------------------------------------------------------


def folder(path: str) -> dict[str, str]:
    return {"uri": f"file://{path}", "name": path}


@pytest.mark.parametrize(
    ("params", "roots"),
    [
        ({"workspaceFolders": [folder("/a"), folder("/b%20c")], "rootUri": "file:///z"}, "/a,/b c"),
        ({"workspaceFolders": [folder("/a"), folder("/a")]}, "/a"),
        ({"workspaceFolders": [{"uri": "vscode-remote://x/a", "name": "a"}]}, ""),
        ({"workspaceFolders": None, "rootUri": "file:///z", "rootPath": "/y"}, "/z"),
        ({"rootPath": "/y"}, "/y"),
        ({"workspaceFolders": []}, ""),
        ({"workspaceFolders": [folder("/\ud800"), folder("/%FF"), folder("/a")]}, "/a"),
    ],
)
def test_roots(params: dict[str, Any], roots: str) -> None:
    with session(**params) as server:
        assert ",".join(server.ask(1, "test/state")["roots"]) == roots


def test_each_of_several_folders_is_asked_for_and_a_new_one_too() -> None:
    with session(capabilities=ASKS, workspaceFolders=[folder("/a")]) as server:
        question = server.asked("workspace/configuration")
        assert question["params"] == {
            "items": [{"section": "qcn"}]
        }  # the folder's are all there are
        reply(server, question, result=[{}])
        server.messages.clear()
        event = {"removed": [], "added": [folder("/b c")]}
        server.send(notification("workspace/didChangeWorkspaceFolders", {"event": event}))
        question = server.asked("workspace/configuration")
        scopes = [item.get("scopeUri") for item in question["params"]["items"]]
        assert scopes == [None, "file:///a", "file:///b%20c"]
        reply(server, question, result=[completion(maxTokens=9), completion(maxTokens=3)])
        state_with(server, maxTokens=9, maxTokensIn={"/a": 3, "/b c": 9})  # the last was not told


def test_a_folders_mistake_is_told_with_its_name_and_everybodys_once() -> None:
    folders = [folder("/a"), folder("/b")]
    with session(capabilities=ASKS, workspaceFolders=folders) as server:
        everywhere, there = completion(popup=1), completion(popup=1, maxTokens=0)
        question = server.asked("workspace/configuration")
        reply(server, question, result=[everywhere, everywhere, there])
        server.ask("state", "test/state")
        told = [
            m["params"]["message"] for m in server.messages if "showMessage" in m.get("method", "")
        ]
        assert [one.partition(" expected")[0] for one in told] == [
            "qcn.completion.popup:",
            "b: qcn.completion.maxTokens:",
        ]


def test_roots_come_and_go() -> None:
    with session(workspaceFolders=[folder("/a"), folder("/b")]) as server:
        event = {"removed": [folder("/a"), folder("/gone")], "added": [folder("/c"), folder("/b")]}
        server.send(notification("workspace/didChangeWorkspaceFolders", {"event": event}))
        assert server.ask(1, "test/state")["roots"] == ["/b", "/c"]
