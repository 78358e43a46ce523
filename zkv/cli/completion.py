"""`completion`: the scripts that have bash, zsh and fish complete zkv-client, made from the table.

Keys come from the server, a bounded number of them and within a bounded time.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from zkv.cli import output
from zkv.cli.arguments import COMMANDS, COMMON
from zkv.cli.command import FILES, KEYS, Command, Settings, options, positionals, takes_value
from zkv.cli.commands import Arguments
from zkv.store import Store

KEYS_MAX: Final = 100
TIMEOUT_S: Final = 1

Commands = Mapping[str, Command]
Common = Mapping[str, Settings]


class Place(NamedTuple):
    """A place on the command line: an argument of a command, by number or option."""

    command: str
    argument: str

    def pattern(self) -> str:
        return f"{self.command}:{self.argument}"


def completion(_: Store, args: Arguments) -> None:
    output.line(_SCRIPTS[args.shell](COMMANDS, COMMON).strip("\n"))


def words_of(settings: Settings, commands: Commands) -> list[str]:
    """What may stand there, if it is one of a few words."""
    choices = settings.get("choices") or ()
    return list(commands) if settings.get("metavar") == "COMMAND" else list(choices)


def _places(commands: Commands, common: Common) -> Iterator[tuple[Place, Settings]]:
    """Every place that is not a command, and what is said of it."""
    for names, settings in options(common):
        yield from ((Place("*", name), settings) for name in names)
    for command, of in commands.items():
        for number, settings in enumerate(positionals(of)):
            yield Place(command, str(number)), settings
        for names, settings in options(of.arguments):
            yield from ((Place(command, name), settings) for name in names)


def _cases(commands: Commands, common: Common) -> dict[str, str]:
    """What the scripts for bash and zsh have to know, each as the branches of a `case`."""
    valued, keys, files, words = [], [], [], []
    for place, settings in _places(commands, common):
        if place.argument.startswith("-") and takes_value(settings):
            valued.append(place.pattern())
        if settings.get("metavar") in KEYS:
            keys.append(place.pattern())
        elif settings.get("metavar") in FILES:
            files.append(place.pattern())
        elif found := words_of(settings, commands):
            words.append(f"{place.pattern()}) choices=({' '.join(found)}) ;;")
    return {
        "VALUED": "|".join(valued),
        "KEYS": "|".join(keys),
        "FILES": "|".join(files),
        "WORDS": "\n      ".join(words),
        "OPTIONS": "\n      ".join(
            f"{name}) choices=({' '.join(_names(of.arguments))}) ;;"
            for name, of in commands.items()
        ),
        "COMMON": " ".join(_names(common)),
        "COMMANDS": " ".join(commands),
        "ABOUT": "\n    ".join(shlex.quote(f"{it}:{of.about}") for it, of in commands.items()),
    }


def _names(arguments: Mapping[str, Settings]) -> Iterator[str]:
    return (name for names, _ in options(arguments) for name in names)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    text = template.replace("@READ@", _READ)
    for name, part in {**parts, "MAX": str(KEYS_MAX), "TIMEOUT": str(TIMEOUT_S)}.items():
        text = text.replace(f"@{name}@", part)
    return text


_READ: Final = """
  for word in "${typed[@]}"; do
    if [[ -n $option ]]; then
      [[ $option == --endpoint ]] && server+=(--endpoint "$word")
      option=""
    elif [[ $word == -* ]]; then
      [[ $word == --endpoint=* ]] && server+=("$word")
      case "$command:$word" in @VALUED@) option=$word ;; esac
    elif [[ -z $command ]]; then
      command=$word
    else
      place=$((place + 1))
    fi
  done
  place="$command:${option:-$place}"
  if [[ -z $option && $current == -* ]]; then
    case "$command" in
      @OPTIONS@
    esac
    choices+=(@COMMON@)
  elif [[ -n $command || -n $option ]]; then
    case "$place" in
      @WORDS@
    esac
  fi"""
"""What bash and zsh have in common: where on the command line the cursor is."""

_BASH: Final = r"""
# Completion of zkv-client in bash: eval "$(zkv-client completion bash)"
_zkv_client() {
  local line=${COMP_LINE:0:COMP_POINT} current="" command="" option="" word place=0
  local -a typed choices=() server=(--timeout @TIMEOUT@)
  read -ra typed <<< "$line"  # COMP_WORDS are split at each colon, and keys have many
  local program=${typed[0]}
  if [[ $line != *[[:space:]] ]]; then
    current=${typed[-1]}
    unset 'typed[-1]'
  fi
  typed=("${typed[@]:1}")
@READ@
  [[ -z $command && -z $option && $current != -* ]] && choices=(@COMMANDS@)
  COMPREPLY=()
  case "$place" in
    @KEYS@)
      if [[ -n $option || $current != -* ]]; then
        while IFS= read -r word; do
          [[ $word != \"* ]] && printf -v word %q "$word" && COMPREPLY+=("$word")
        done < <("$program" "${server[@]}" list --limit @MAX@ -- "$current" 2>/dev/null)
      fi ;;
    @FILES@)
      [[ $current != -* ]] && compopt -o filenames 2>/dev/null
      [[ $current != -* ]] && mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
  esac
  for word in "${choices[@]}"; do
    [[ $word == "$current"* ]] && COMPREPLY+=("$word")
  done
  word=${current%"${current##*[:=]}"}  # bash replaces only what follows the last colon
  COMPREPLY=("${COMPREPLY[@]#"$word"}")
}
complete -F _zkv_client zkv-client
"""

_ZSH: Final = r"""
#compdef zkv-client
# Completion of zkv-client in zsh: source <(zkv-client completion zsh)
_zkv_client() {
  local current=${words[CURRENT]} command="" option="" word found place=0 program=${words[1]}
  local -a typed choices server commands
  server=(--timeout @TIMEOUT@)
  typed=("${(@Q)words[2,CURRENT-1]}")
  commands=(
    @ABOUT@
  )
@READ@
  if [[ -z $command && -z $option && $current != -* ]]; then
    _describe command commands
    return
  fi
  case "$place" in
    @KEYS@)
      if [[ -n $option || $current != -* ]]; then
        found="$("$program" "${server[@]}" list --limit @MAX@ -- "${(Q)current}" 2>/dev/null)"
        choices=("${(@)${(@f)found}:#(\"*|)}")
      fi ;;
    @FILES@) [[ $current != -* ]] && _files ;;
  esac
  (( ${#choices} )) && compadd -- "${choices[@]}"
}
if [[ ${funcstack[1]} == _zkv_client ]]; then
  _zkv_client "$@"
else
  compdef _zkv_client zkv-client
fi
"""

_FISH: Final = r"""
# Completion of zkv-client in fish: zkv-client completion fish | source
function __zkv_client_keys
    set -l typed (commandline -opc)
    set -l server --timeout @TIMEOUT@
    if set -l at (contains -i -- --endpoint $typed); and set -q typed[(math $at + 1)]
        set -a server --endpoint $typed[(math $at + 1)]
    end
    $typed[1] $server list --limit @MAX@ -- (commandline -ct) 2>/dev/null | string match -v '"*'
end
function __zkv_client_at # COMMAND PLACE: whether so many words stand behind the command
    set -l words
    set -l option ""
    for word in (commandline -opc)[2..]
        if contains -- "$option" @VALUED@
            set option ""
        else if string match -q -- '-*' $word
            set option $word
        else
            set option ""
            set -a words $word
        end
    end
    test "$words[1]" = $argv[1]; and test (count $words) -eq (math $argv[2] + 1)
end
complete -c zkv-client -f
@COMPLETE@
"""


def _bash(commands: Commands, common: Common) -> str:
    return _filled(_BASH, _cases(commands, common))


def _zsh(commands: Commands, common: Common) -> str:
    return _filled(_ZSH, _cases(commands, common))


def _fish(commands: Commands, common: Common) -> str:
    lines, valued = [], set[str]()
    for name, of in commands.items():
        when = "__fish_use_subcommand"
        lines.append(f"complete -c zkv-client -n {when} -a {name} -d {_fish_text(of.about)}")
    for place, settings in _places(commands, common):
        lines.append(_fish_place(place, settings, commands))
        if place.argument.startswith("-") and takes_value(settings):
            valued.add(place.argument)
    complete = "\n".join(line for line in lines if line)
    return _filled(_FISH, {"COMPLETE": complete, "VALUED": " ".join(sorted(valued))})


def _fish_place(place: Place, settings: Settings, commands: Commands) -> str:
    parts = ["complete -c zkv-client"]
    if place.argument.startswith("-"):
        if place.command != "*":
            parts.append(f"-n '__fish_seen_subcommand_from {place.command}'")
        length = "-l" if place.argument.startswith("--") else "-s"
        parts.append(f"{length} {place.argument.lstrip('-')}")
        parts.append(f"-d {_fish_text(settings.get('help', ''))}")
        if takes_value(settings):
            parts.append("-r")
    else:
        parts.append(f"-n '__zkv_client_at {place.command} {place.argument}'")
    if settings.get("metavar") in KEYS:
        parts.append("-a '(__zkv_client_keys)'")
    elif settings.get("metavar") in FILES:
        parts.append("-F")
    elif found := words_of(settings, commands):
        parts.append(f"-a '{' '.join(found)}'")
    elif not place.argument.startswith("-"):
        return ""  # nothing is known of it
    return " ".join(parts)


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: Final[dict[str, Callable[[Commands, Common], str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
