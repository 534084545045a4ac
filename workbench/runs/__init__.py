"""Run directories: written as `<out>.partial`, locked, sealed by a manifest, and resumed."""

from workbench.runs.directory import ENV, Run, open_run, publish, reopen
from workbench.runs.files import atomic_write, naming, sha256_file
from workbench.runs.lock import locked
from workbench.runs.manifest import MANIFEST, amend_manifest, verify_files, verify_manifest, write_manifest
from workbench.runs.settings import (
    CONFIG,
    MAX_SETTINGS_BYTES,
    decode_text,
    read_config,
    read_json,
    read_settings,
    read_toml,
    shorten,
)

__all__ = [
    "CONFIG",
    "ENV",
    "MANIFEST",
    "MAX_SETTINGS_BYTES",
    "Run",
    "amend_manifest",
    "atomic_write",
    "decode_text",
    "locked",
    "naming",
    "open_run",
    "publish",
    "read_config",
    "read_json",
    "read_settings",
    "read_toml",
    "reopen",
    "sha256_file",
    "shorten",
    "verify_files",
    "verify_manifest",
    "write_manifest",
]
