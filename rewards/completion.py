"""`rewards completion bash|zsh|fish`: a script for the shell, made of the tables of verbs, flags, recipes and services.

The script is static: pressing the key starts no Python. It knows what this version has, so it is made again after an upgrade.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewards.command import VERBS, unknown
from rewards.shipped import recipes
from services.kit.catalogue import CATALOGUE

# The flags of each verb; a test compares them with the programs'.
FLAGS: dict[str, tuple[str, ...]] = {
    "doctor": ("--json",),
    "fetch": ("--dry-run",),
    "evaluate": ("--checkpoint", "--weights", "--output", "--against"),
    "generate": (
        "--prompts",
        "--output",
        "--checkpoint",
        "--weights",
        "--score",
        "--task",
        "--think",
        "--refine",
        "--samples",
        "--seed",
        "--batch-size",
        "--num-inference-steps",
        "--shift",
        "--text-guidance",
        "--image-guidance",
        "--refine-text-guidance",
        "--guidance-interval",
        "--renorm",
        "--renorm-min",
        "--height",
        "--width",
        "--temperature",
        "--max-new-tokens",
    ),
    "export": ("--to", "--output", "--weights", "--dtype", "--verify"),
    "build-pairs": (
        "--captions",
        "--questions",
        "--captions-image-dir",
        "--captions-features",
        "--questions-image-dir",
        "--questions-features",
        "--vision-model",
        "--device",
        "--batch-size",
        "--aligned",
        "--threshold",
        "--neighbours",
        "--pairing",
        "--seed",
        "--bad-rows",
        "--to-complete",
        "--output",
    ),
    "launch": ("--nproc", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--max-restarts"),
    "runs": ("--host", "--port", "--token-file", "--export", "--compare", "--no-cache"),
    "score": (
        "--prompt",
        "--prompts",
        "--reward",
        "--target",
        "--group",
        "--token-file",
        "--ca-file",
        "--deadline-s",
        "--json",
    ),
    "services": (
        "--only",
        "--profile",
        "--env-file",
        "--token-file",
        "--ca-file",
        "--timeout",
        "--watch",
        "--json",
        "--serve",
        "--host",
        "--port",
        "--page-token-file",
    ),
    "loadtest": (
        "--rate",
        "--duration",
        "--arrivals",
        "--max-outstanding",
        "--timeout",
        "--seed",
        "--i-may-load-this-host",
        "--mix",
        "--reward",
        "--items",
        "--prompt-file",
        "--encoding",
        "--format",
        "--repeat-share",
        "--token-file",
        "--ca-file",
        "--report",
        "--json",
        "--assert-p95-ms",
        "--max-error-share",
    ),
}
TAKES_RECIPE = ("train", "sft", "doctor", "evaluate", "generate", "fetch", "recipes", "services")
SOURCES = ("config", "deepgen", "nanovlm-lab", "pairuni", "t2i-r1", "unireason", "neo")
SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# rewards {version}: completion for bash. To use it: source <(rewards completion bash)
_rewards() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=
    if ((COMP_CWORD == 1)); then
        words="{verbs}"
    elif [[ "$word" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
    elif ((COMP_CWORD == 2)); then
        case "${{COMP_WORDS[1]}}" in
{names}
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    if ((COMP_CWORD > 1)) && [[ "$word" != -* ]]; then
        local file
        while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$word")
    fi
}}
complete -o filenames -F _rewards rewards
"""

_ZSH = """\
#compdef rewards
# rewards {version}: completion for zsh. To use it: source <(rewards completion zsh), after compinit
_rewards() {{
    local -a names
    if ((CURRENT == 2)); then
        names=({verbs})
        compadd -a names
        return
    fi
    if [[ "${{words[CURRENT]}}" == -* ]]; then
        case "${{words[2]}}" in
{flags}
        esac
        compadd -a names
        return
    fi
    if ((CURRENT == 3)); then
        case "${{words[2]}}" in
{names}
        esac
        compadd -a names
    fi
    _files
}}
compdef _rewards rewards
"""


def _after() -> dict[tuple[str, ...], Sequence[str]]:
    """What may come right after each group of verbs."""
    return {
        TAKES_RECIPE: list(recipes()),
        ("serve",): [entry.name for entry in CATALOGUE],
        ("migrate",): SOURCES,
        ("completion",): SHELLS,
    }


def script(shell: str, version: str) -> str:
    """The shell's script."""
    if shell == "fish":
        return _fish(version)
    form, pad = (_BASH, 'words="{}"') if shell == "bash" else (_ZSH, "names=({})")

    def case(patterns: Sequence[str], words: Sequence[str]) -> str:
        return f"            {'|'.join(patterns)}) {pad.format(' '.join(words))} ;;"

    return form.format(
        version=version,
        verbs=" ".join(VERBS),
        flags="\n".join(case([verb], [*FLAGS.get(verb, ()), "--help"]) for verb in VERBS),
        names="\n".join(case(verbs, words) for verbs, words in _after().items()),
    )


def _fish(version: str) -> str:
    lines = [f"# rewards {version}: completion for fish. To use it: rewards completion fish | source"]
    for name, verb in VERBS.items():
        said = verb.text.replace("'", "\\'")
        lines.append(f"complete -c rewards -n __fish_use_subcommand -f -a {name} -d '{said}'")
    for verbs, words in _after().items():
        seen = f"'__fish_seen_subcommand_from {' '.join(verbs)}; and test (count (commandline -opc)) -eq 2'"
        lines.append(f"complete -c rewards -n {seen} -a '{' '.join(words)}'")
    for name in VERBS:
        for flag in [*FLAGS.get(name, ()), "--help"]:
            lines.append(f"complete -c rewards -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str], prog: str) -> int:
    """Print the script. Returns the exit code; 2 where the shell is not known."""
    from rewards import __version__

    if len(words) != 1 or words[0] in ("-h", "--help"):
        print(
            f"usage: {prog} {'|'.join(SHELLS)}\n\nPrints the shell's completion; a comment at its head says how to use it."
        )
        return 0 if len(words) == 1 else 2
    if words[0] not in SHELLS:
        print(f"error: {unknown('completion for', words[0], SHELLS)}", file=sys.stderr)
        return 2
    print(script(words[0], __version__), end="")
    return 0
