"""What an endpoint finds in its application: the job core, the settings, and who calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from hansard.server.access import Caller, caller
from hansard.server.jobs import JobCore
from hansard.settings import Settings


def core_of(request: Request) -> JobCore:
    """The job core of the server that a request came to."""
    core: JobCore = request.app.state.core
    return core


def settings_of(request: Request) -> Settings:
    """The settings of the server that a request came to."""
    settings: Settings = request.app.state.settings
    return settings


Core = Annotated[JobCore, Depends(core_of)]
Given = Annotated[Settings, Depends(settings_of)]
Who = Annotated[Caller, Depends(caller)]
JobId = Annotated[str, Path(description="the id that the job was given")]
