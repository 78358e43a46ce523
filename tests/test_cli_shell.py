"""zkv-client without a command on a terminal: a shell, used through a real pseudo-terminal."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pexpect
import pytest
from command_line import COMMAND, environment, peer
from harness import EXIT_S, ServerProcess

import zkv

WHERE_IS_THE_CURSOR, TOP_LEFT = "\x1b[6n", "\x1b[1;1R"
"""What a prompt asks a terminal first, and what this one answers."""

CTRL_C, CTRL_D = "c", "d"
UP = "\x1b[A"


class Shell:
    """A shell that somebody types at."""

    def __init__(self, endpoint: str, state: Path, *options: str) -> None:
        self.history = state / "zkv" / "history"
        env = environment(endpoint) | {
            "XDG_STATE_HOME": str(state),
            "TERM": "xterm-256color",
        }
        env.pop("NO_COLOR", None)
        self.terminal = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *options],
            env=env,
            timeout=EXIT_S,
            encoding="utf-8",
            dimensions=(30, 120),
        )

    def sees(self, *texts: str) -> None:
        """Waits until these have been shown, one after the other."""
        for text in texts:
            self.terminal.expect_exact(text)

    def enter(self, line: str) -> None:
        """Types a line when the prompt is there."""
        self.prompt()
        self.terminal.send(line + "\r")

    def type(self, text: str) -> None:
        """The same, without Enter."""
        self.prompt()
        self.terminal.send(text)

    def prompt(self) -> None:
        """Waits for a prompt."""
        self.terminal.expect_exact(WHERE_IS_THE_CURSOR)
        self.terminal.send(TOP_LEFT)

    def press(self, control: str) -> None:
        self.terminal.sendcontrol(control)

    def leave(self) -> int:
        """Leaves by Ctrl-D; the exit code."""
        self.prompt()
        self.press(CTRL_D)
        self.terminal.expect(pexpect.EOF)
        self.terminal.close()
        return int(self.terminal.exitstatus)


@pytest.fixture
def shell(shared_server: ServerProcess, store: zkv.Client, tmp_path: Path) -> Iterator[Shell]:
    """A shell on the shared server's empty store."""
    shell = Shell(shared_server.endpoint, tmp_path / "state")
    yield shell
    shell.terminal.close(force=True)


def test_json_over_lines_goes_in_and_comes_out_in_colour(shell: Shell, store: zkv.Client) -> None:
    shell.sees(f"zkv {zkv.__version__}: 0 keys, revision ", "Ctrl-D leaves")
    shell.enter('put user:1 {"name": "Ada",')
    shell.sees("…")  # it goes on
    shell.terminal.send('"tags": [1, {"x": null}]}\r')
    shell.enter("get user:1")
    shell.sees(
        '\x1b[34m"name"\x1b[0m: \x1b[32m"Ada"\x1b[0m',
        '\x1b[34m"tags"\x1b[0m: [',
        "\x1b[36m1\x1b[0m",
        "\x1b[35mnull\x1b[0m",
    )
    assert store.get("user:1") == {"name": "Ada", "tags": [1, {"x": None}]}
    assert shell.leave() == 0


def test_tab_completes_commands_options_and_keys(shell: Shell, store: zkv.Client) -> None:
    store.put("user:zebra crossing", "found it")
    shell.type("ge\t")
    shell.sees("t")
    shell.terminal.send(" user:z\t")
    shell.sees("ebra crossing'")
    shell.terminal.send(" --jsonl\r")
    shell.sees('"value":"found it"')
    shell.type("expire user:z\t")
    shell.sees("ebra crossing'")
    shell.terminal.send(" 60 --if\t")
    shell.sees("-version")
    shell.press(CTRL_C)
    assert shell.leave() == 0


def test_the_toolbar_shows_how_a_command_is_used(shell: Shell) -> None:
    shell.sees("TAB completes")
    shell.type("put ")
    shell.sees(" [--if-version N]")  # the rest is drawn only where it differs
    shell.press(CTRL_C)
    assert shell.leave() == 0


def test_ctrl_c_interrupts_a_long_list_and_not_the_shell(shell: Shell, store: zkv.Client) -> None:
    for first in range(0, 40_000, 1000):  # more than a terminal takes that nobody reads
        store.put_many({f"key:{number:06}": None for number in range(first, first + 1000)})
    shell.enter("list key:")
    shell.sees("key:000100")
    shell.press(CTRL_C)
    shell.prompt()
    assert shell.terminal.before is not None
    assert "key:039999" not in shell.terminal.before
    shell.terminal.send("count key:00000\r")
    shell.sees("10\r\n")
    assert shell.leave() == 0


def test_ctrl_c_drops_a_line(shell: Shell, store: zkv.Client) -> None:
    shell.type("put k {")
    shell.sees("{")
    shell.press(CTRL_C)
    shell.enter("count")
    shell.sees("0\r\n")
    assert shell.leave() == 0


def test_ctrl_c_cancels_a_request(tmp_path: Path) -> None:
    with peer(tmp_path) as (socket, endpoint):
        shell = Shell(endpoint, tmp_path / "state", "--timeout", "60")
        *envelope, _ = socket.recv_multipart()
        info = {"ok": True, "revision": 7, "name": "zkv", "version": "9", "protocol": 1,
                "started": 0, "store": "", "keys": 3, "snapshot_revision": 0, "compacting": False,
                "compaction_error": None, "limits": {}, "counters": {}}  # fmt: skip
        socket.send_multipart([*envelope, msgpack.packb(info)])
        shell.sees("zkv 9: 3 keys, revision 7")
        shell.enter("get k")
        socket.recv_multipart()
        shell.press(CTRL_C)
        shell.sees("^C")
        assert shell.leave() == 0


def test_clear_asks_first(shell: Shell, store: zkv.Client) -> None:
    store.put_many({"a:1": 1, "a:2": 2, "b": 3})
    question = 'Remove 2 keys with the prefix "a:"? [y/N] '
    shell.enter("clear a:")
    shell.sees(question)
    shell.terminal.send("n\r")
    shell.sees("nothing was removed")
    shell.enter("clear a:")
    shell.sees(question)
    shell.press(CTRL_C)
    shell.prompt()
    assert store.count() == 3
    shell.terminal.send("clear a:\r")
    shell.sees(question)
    shell.terminal.send("y\r")
    shell.sees("2\r\n")
    assert shell.leave() == 0
    assert list(store.keys()) == ["b"]


def test_an_error_does_not_end_it(shell: Shell, store: zkv.Client) -> None:
    shell.enter("get nobody")
    shell.sees("zkv-client: no such key: nobody\r\n")
    shell.enter("gte k")
    shell.sees("zkv-client: no such command: gte (did you mean get?)\r\n")
    shell.enter("put k")
    shell.sees("usage: put KEY (VALUE | -x)", "put: error: the following arguments are required")
    shell.enter("load /nowhere")
    shell.sees("zkv-client: /nowhere: No such file or directory\r\n")
    shell.enter("count")
    shell.sees("0\r\n")
    shell.enter("exit")
    shell.terminal.expect(pexpect.EOF)
    shell.terminal.close()
    assert shell.terminal.exitstatus == 0


def test_history_is_kept_for_its_owner_alone(
    shell: Shell, shared_server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("n", 41)
    shell.enter("incr n")
    shell.sees("42\r\n")
    assert shell.leave() == 0
    assert stat.S_IMODE(shell.history.stat().st_mode) == 0o600
    assert stat.S_IMODE(shell.history.parent.stat().st_mode) == 0o700
    again = Shell(shared_server.endpoint, tmp_path / "state")
    again.type(UP)
    again.sees("incr")
    again.terminal.send("\r")
    again.sees("43\r\n")
    assert again.leave() == 0


def test_a_history_that_cannot_be_kept_is_said_and_no_more(
    shared_server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    shell = Shell(shared_server.endpoint, tmp_path / "state")
    shell.sees("zkv-client: no history is kept: ", "Not a directory")
    shell.enter("count")
    shell.sees("0\r\n")
    assert shell.leave() == 0


def test_without_a_server_it_says_so_and_goes_on(tmp_path: Path) -> None:
    shell = Shell(f"ipc://{tmp_path}/nobody", tmp_path / "state", "--timeout", "0.2")
    shell.sees("zkv-client: nothing listens at ")
    shell.enter("count")
    shell.sees("start one with zkv-server")
    assert shell.leave() == 0


def test_without_prompt_toolkit_it_says_what_to_install(shared_server: ServerProcess) -> None:
    program = (
        "import sys; sys.modules['prompt_toolkit'] = None\n"
        "from zkv.cli import main\nsys.exit(main([]))"
    )
    terminal = pexpect.spawn(
        sys.executable, ["-c", program], env=environment(shared_server.endpoint), timeout=EXIT_S
    )
    terminal.expect(pexpect.EOF)
    said = terminal.before
    terminal.close()
    assert re.fullmatch(rb"zkv-client: the shell needs prompt_toolkit: [^\n]+\r\n", said)
    assert b"pip install 'zkv[cli]'" in said
    assert terminal.exitstatus == 2


def test_one_command_loads_nothing_of_the_shell(shared_server: ServerProcess) -> None:
    program = (
        "import sys\nfrom zkv.cli import main\nmain(['count'])\n"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'prompt_toolkit', 'rich', 'asyncio', 'pygments', 'difflib'})"
    )
    terminal = pexpect.spawn(
        sys.executable, ["-c", program], env=environment(shared_server.endpoint), timeout=EXIT_S
    )
    terminal.expect_exact("set()\r\n")
    terminal.close()
