"""Models by name: a folder on this machine, or an id of the Hugging Face hub, which is looked for in its cache and fetched.

An id is `owner/name`, or `owner/name@revision` for one state of it (a branch, a tag, a commit, refs/pr/3). One file of it is
`owner/name/file`, or `owner/name@revision/file`. huggingface_hub does the work, with its own cache and variables: HF_HOME for
where the cache lies, HF_HUB_OFFLINE=1 to take what is there, HF_TOKEN (or `hf auth login`) for gated models, HF_ENDPOINT for
another hub. It is imported when something is looked for, and not before.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

_WORD = r"[A-Za-z0-9][\w.-]*"
_STEMS = ("model", "diffusion_pytorch_model")  # of weights that transformers and diffusers write
_REVISION = rf"refs/pr/\d+|{_WORD}"
_OURS = (
    "models",
    "data",
    "outputs",
    "configs",
    "assets",
    "checkpoints",
    "weights",
)  # folders, there or not, and no owners
_ENDINGS = (  # of files of data and weights; a name that ends so is a path
    *(".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".yaml", ".yml"),
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt"),
)
_FOLDER = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_REVISION}))?")
_FILE = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_REVISION}))?/(?P<file>{_WORD}(?:/{_WORD})*)")

_KEPT = re.compile(  # a state of a model in the cache, and a file of it
    r"(?:^|/)(?:models|datasets)--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?P<file>(?:/[^/]+)*)$"
)


class HubError(Exception):
    """The hub did not give what was asked for; the message ends with the command to run where it can be reached."""


@dataclass(frozen=True)
class HubId:
    """What is asked of the hub.

    Attributes:
        repo: `owner/name`.
        revision: a branch, a tag or a commit; None is the newest state.
        file: one file of it; None is all of it, or what patterns say.
        data_set: it is a data set, and no model.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    data_set: bool = False

    def command(self, files: Sequence[str] = (), folder: str | None = None, leave_out: Sequence[str] = ()) -> str:
        """What to type to get it.

        Args:
            files: patterns of the files that are needed; none is all of them.
            folder: where it should lie; None is `models/name`, of a data set `data/name`.
            leave_out: patterns of files among them that nothing reads.
        """
        words = ["hf", "download", self.repo, *([self.file] if self.file else [])]
        words += ["--repo-type", "dataset"] if self.data_set else []
        words += ["--revision", self.revision] if self.revision else []
        words += ["--local-dir", folder or self.folder]
        words += [word for pattern in files for word in ("--include", pattern)]
        return shlex.join([*words, *(word for pattern in leave_out for word in ("--exclude", pattern))])

    @property
    def page(self) -> str:
        """Its page, for people."""
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")  # as huggingface_hub reads it
        return f"{hub}/{'datasets/' if self.data_set else ''}{self.repo}"

    @property
    def folder(self) -> str:
        """The folder that `command` makes where none is named."""
        return f"{'data' if self.data_set else 'models'}/{self.repo.split('/')[1]}"

    @property
    def place(self) -> str:
        """The path of what `command` fetches."""
        return str(PurePosixPath(self.folder) / (self.file or ""))


def hub_id(name: str) -> HubId:
    """An id taken apart, of a model or of one file of it. Raises ValueError for what is neither."""
    found = _FOLDER.fullmatch(name) or _FILE.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no id of the hub (owner/name, owner/name@revision, owner/name/file)")
    return HubId(found["repo"], found["revision"], found.groupdict().get("file"))


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` is an id of the hub, of a model or a data set, and not a path.

    It is one where nothing in the working directory is called like its owner, no folder of ours is (`models`, `data` and
    others, there or not), and it does not end like a file. `x/y` of which nothing is there is therefore asked of the hub;
    what is said if the hub does not give it names both, for a path may have been meant (`_as_a_path`).
    """
    return _FOLDER.fullmatch(str(name)) is not None and _no_path(name) and not str(name).lower().endswith(_ENDINGS)


def is_hub_file(name: str | Path) -> bool:
    """Whether `name` is a file of the hub (`owner/name/file`) and not a path, by the same rule."""
    return _FOLDER.fullmatch(str(name)) is None and _FILE.fullmatch(str(name)) is not None and _no_path(name)


def _no_path(name: str | Path) -> bool:
    owner = Path(name).parts[0]
    return owner not in _OURS and not Path(owner).exists()


def shown(path: Path) -> str:
    """A model's folder or file as people know it: in huggingface_hub's cache its id with the commit, else its name.

    In the cache a folder is called after its commit alone: models--owner--name/snapshots/<commit>/<file>.
    """
    kept = _KEPT.search(path.as_posix())
    if kept is None:
        return path.name
    return f"{kept['owner']}/{kept['name']}@{kept['commit']}{kept['file']}"


def fetch_folder(
    name: str,
    field: str,
    files: Sequence[str] | None,
    *,
    fetch: bool = True,
    into: str | None = None,
    data_set: bool = False,
) -> Path:
    """The folder that holds the model or data set of this id, in huggingface_hub's cache, fetched where that lacks it.

    Of weights that lie there plain and as a variant, such as model.fp16.safetensors, the plain ones are fetched.

    Args:
        field: the setting that names it, for messages.
        files: patterns of the files that are needed; None is all.
        fetch: False takes what the cache has, online too.
        into: a folder for it outside the cache.
        data_set: the id is a data set's.

    Raises:
        HubError: the hub cannot be reached, has no such thing or does not give it, and the cache has none.
    """
    asked = replace(hub_id(name), data_set=data_set)
    assert asked.file is None, f"{name} is one file"
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                asked.repo,
                repo_type="dataset" if data_set else "model",
                revision=asked.revision,
                allow_patterns=None if files is None else list(files),
                ignore_patterns=None if data_set else variant_patterns(_known_files(asked, fetch)),
                local_files_only=not fetch,
                local_dir=into,
            )
        )
    except _errors() as error:
        raise HubError(_sentence(asked, name, field, "folder", error, files or ())) from error


def fetch_file(name: str, field: str) -> Path:
    """The file in huggingface_hub's cache of `owner/name/file`, fetched where the cache lacks it. Raises HubError."""
    asked = hub_id(name)
    assert asked.file is not None, f"{name} is a whole model"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(asked.repo, asked.file, revision=asked.revision))
    except _errors() as error:
        raise HubError(_sentence(asked, name, field, "file", error)) from error


def variant_patterns(files: Iterable[str]) -> list[str]:
    """Patterns of the weights of a variant (model.fp16.safetensors and its kin) in folders that have plain ones, too."""
    named = [PurePosixPath(each) for each in files if each.endswith(".safetensors")]
    plain = sorted({each.parent.as_posix() for each in named if "." not in each.stem and each.stem.startswith(_STEMS)})
    return [
        pattern if folder == "." else f"{folder}/{pattern}"
        for folder in plain
        for stem in _STEMS
        for pattern in (f"{stem}*.*.safetensors", f"{stem}.safetensors.index.*.json")
    ]


def _known_files(asked: HubId, fetch: bool) -> list[str]:
    """The names of a model's files, as the hub says, or where it does not those that the cache has."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        if fetch and not constants.HF_HUB_OFFLINE:
            return HfApi().list_repo_files(asked.repo, revision=asked.revision)
    except _errors():  # what is wrong is said of the fetching
        pass
    kept = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=asked.repo, repo_type="model") / "snapshots"
    return [file.relative_to(state).as_posix() for state in kept.glob("*") for file in state.rglob("*")]


def _errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises of a hub that cannot be reached, says no, or was never asked for this: with the errors of
    the HTTP library that it uses, be it httpx or httpx2, of which its own are."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def _sentence(asked: HubId, name: str, field: str, kind: str, error: Exception, files: Sequence[str] = ()) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = asked.page
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GatedRepoError | RepositoryNotFoundError | RevisionNotFoundError):
        cause = cause.__cause__
    if isinstance(cause, GatedRepoError):
        why = f"it is gated: accept its licence at {page}, then `hf auth login` or set HF_TOKEN"
    elif isinstance(cause, RevisionNotFoundError):
        why = f"it has no revision {asked.revision}"
    elif isinstance(cause, RepositoryNotFoundError):
        why = (
            f"there is no {page}, or it is private: correct the id, or `hf auth login` with an account that may read it"
        )
    elif constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set, and the cache lacks it: unset it, or fetch it elsewhere"
    else:
        lines = str(error).strip().splitlines()
        why = _without_tokens(lines[0] if lines else type(error).__name__)
    return (
        f"{field} = {name} is no {kind} here, and the hub did not give it ({why}). On a machine with access run\n"
        f"    {asked.command(files)}\n"
        f"({'gated data sets' if asked.data_set else 'gated models'}: accept the licence at {page} and `hf auth login` first), "
        f"copy {asked.place} here and set {field} to it. {_as_a_path(name)}"
    )


def _as_a_path(name: str) -> str:
    """What to do if a path was meant and no id."""
    owner, _, rest = name.partition("/")
    try:
        here = [each.name for each in Path().iterdir() if each.is_dir()]
    except OSError:
        here = []  # a folder that may not be listed: the hint is left out
    near = difflib.get_close_matches(owner, [*_OURS, *here], n=1)
    remedy = f"did you mean {near[0]}/{rest}?" if near else "correct it, or give it as an absolute path"
    return f"If a path was meant: nothing is called {owner} in {Path.cwd()}; {remedy}"


def _without_tokens(text: str) -> str:
    """A message in which no token stands, whatever raised it."""
    given = os.environ.get("HF_TOKEN", "")
    text = text.replace(given, "***") if given else text
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)
