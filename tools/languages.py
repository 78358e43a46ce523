"""The languages that zkv is tried from: what each needs, and what its msgpack does not keep.

Each has a folder in tools/clients: `client` is an example to be read, `conform` lets `exam` at
the language's own msgpack and ZeroMQ. Nothing but Python itself is needed here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from environment import ROOT, install_debian, install_npm

PROBE_S: Final = 30
JARS: Final = ":".join(
    f"/usr/share/java/{name}.jar"
    for name in (
        "jeromq", "msgpack-core", "msgpack-jackson", "jackson-core", "jackson-databind",
        "jackson-annotations",
    )
)  # fmt: skip
"""Where Debian puts them. With `/usr/share/java/*` Java looks through all that is there."""

Command = Sequence[str]


class Language(NamedTuple):
    """A language, and the commands that bring it to work. They are run in its folder, with an
    endpoint behind them where one is needed; `{out}` stands for a folder for what is built.
    """

    name: str
    probe: Command
    """Succeeds where everything that is needed is there."""
    client: Command
    conform: Command
    build: Sequence[Command] = ()
    debian: Sequence[str] = ()
    """Packages of Debian that it needs."""
    server: Sequence[str] = ()
    """Options that a server needs for it."""
    npm: bool = False
    """Whether it needs the packages that its package.json names, and so Node.js."""
    loses: Mapping[str, str] = {}
    """What its msgpack does not keep, as `exam` names it, each with the reason."""

    @property
    def folder(self) -> Path:
        return ROOT / "tools" / "clients" / self.name.lower()

    @property
    def advice(self) -> str:
        """The commands that install what it needs, for a person."""
        commands = [f"apt-get install {' '.join(self.debian)}"] if self.debian else []
        if self.npm:
            commands.append(f"npm install --prefix {self.folder.relative_to(ROOT)}")
        return " && ".join(commands)

    def is_there(self) -> bool:
        """Whether this machine has all that it needs."""
        try:
            done = subprocess.run(
                self.probe,
                cwd=self.folder,
                check=False,
                timeout=PROBE_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


LANGUAGES: Final = (
    Language(
        "C",
        debian=("gcc", "libc6-dev", "libzmq3-dev", "libmsgpack-dev"),
        probe=["cc", "-E", "-include", "zmq.h", "-include", "msgpack.h", "-xc", "/dev/null"],
        build=[
            ["cc", "-Wall", "-Wextra", f"{name}.c", "-o", f"{{out}}/{name}", "-lzmq", "-lmsgpackc"]
            for name in ("client", "conform")
        ],
        client=["{out}/client"],
        conform=["{out}/conform"],
        loses={"nested too deep": "msgpack-c reads 32 levels, those of the message included"},
    ),
    Language(
        "Java",
        debian=("default-jdk-headless", "libjeromq-java", "libmsgpack-java"),
        probe=[
            "javap",
            "-cp",
            JARS,
            "org.zeromq.ZMQ",
            "org.msgpack.jackson.dataformat.MessagePackFactory",
        ],
        server=["--old-zmtp"],  # Debian's jeromq 0.3 speaks ZMTP 2
        client=["java", "-cp", JARS, "Client.java"],
        conform=["java", "-cp", JARS, "Conform.java"],
    ),
    Language(
        "JavaScript",
        npm=True,
        probe=["node", "--eval", "import('zeromq').then(() => import('@msgpack/msgpack'))"],
        client=["node", "client.js"],
        conform=["node", "conform.js"],
        loses={
            "float becomes int": "a number knows no type: 1.0 is sent as 1",
            "another timestamp": "a Date has no nanoseconds",
            "The type of key must be string or number but object": "an object's keys are str",
        },
    ),
    Language(
        "Perl",
        debian=("libzmq-ffi-perl", "libdata-messagepack-perl", "libzmq3-dev"),
        probe=["perl", "-MZMQ::FFI", "-MData::MessagePack", "-e", "ZMQ::FFI->new"],
        client=["perl", "client.pl"],
        conform=["perl", "conform.pl"],
        loses={
            "bin becomes str": "a string has no type",
            "bin becomes str, not in UTF-8": "a string has no type",
            "EXT type is not supporeted yet": "no ext and no timestamp",
            "Data::MessagePack->unpack: parse error": "it reads 32 levels",
            "another map": "keys that differ by type only are one",
            "order of a map": "a hash has none",
        },
    ),
    Language(
        "PHP",
        debian=("php-cli", "php-zmq", "php-msgpack"),
        probe=["php", "-r", "new ZMQContext(); msgpack_pack(1);"],
        client=["php", "client.php"],
        conform=["php", "conform.php"],
        loses={
            "bin becomes str": "a string has no type",
            "bin becomes str, not in UTF-8": "a string has no type",
            "int becomes str": "an int has 63 bits and a sign",
            "map becomes array": "an empty array may be either",
            "ext becomes nil": "no ext",
            "timestamp becomes nil": "no ext and no timestamp",
            "[msgpack] (msgpack_unserialize_map_item) illegal key type": "keys are str or int",
        },
    ),
    Language(
        "Python",
        probe=["python", "-c", "import zmq, msgpack"],
        client=["python", "client.py"],
        conform=["python", "conform.py"],
    ),
    Language(
        "Ruby",
        debian=("ruby", "ruby-ffi-rzmq", "ruby-msgpack"),
        probe=["ruby", "-rffi-rzmq", "-rmsgpack", "-e", ""],
        client=["ruby", "client.rb"],
        conform=["ruby", "conform.rb"],
        loses={"another map": "the str and the bin of the same letters are one key of a Hash"},
    ),
)


def install(languages: Sequence[Language]) -> None:
    """Installs what is missing of what they need, as far as that is possible here."""
    missing = [it for it in languages if not it.is_there()]
    install_debian([package for it in missing for package in it.debian])
    for language in missing:
        if language.npm:
            install_npm(language.folder)
