"""One engine for every kind of model that runs on Apple's MLX.

Names are imported when they are first used, so that ``import mlxengine`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until the application asks

if TYPE_CHECKING:
    from . import errors as errors
    from . import hub as hub
    from .aio import AsyncInferenceEngine as AsyncInferenceEngine
    from .checks import Check as Check
    from .checks import CheckStatus as CheckStatus
    from .checks import SelfTestContext as SelfTestContext
    from .configuration import FileInfo as FileInfo
    from .configuration import ModelCard as ModelCard
    from .configuration import ModelConfiguration as ModelConfiguration
    from .configuration import ModelRef as ModelRef
    from .configuration import Provenance as Provenance
    from .configuration import Source as Source
    from .configuration import TensorInfo as TensorInfo
    from .device import Device as Device
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import diagnose as diagnose
    from .embeddings import AsyncEmbeddingHandle as AsyncEmbeddingHandle
    from .embeddings import EmbeddingHandle as EmbeddingHandle
    from .engine import InferenceEngine as InferenceEngine
    from .errors import MisuseError as MisuseError
    from .errors import MLXEngineError as MLXEngineError
    from .events import Event as Event
    from .events import Finished as Finished
    from .events import FinishReason as FinishReason
    from .events import Metrics as Metrics
    from .events import Progress as Progress
    from .events import TextDelta as TextDelta
    from .events import Usage as Usage
    from .features import Explanation as Explanation
    from .features import Feature as Feature
    from .features import Features as Features
    from .features import LLMEngineFeatures as LLMEngineFeatures
    from .features import Stage as Stage
    from .fit import FitReport as FitReport
    from .fit import FitVerdict as FitVerdict
    from .grammar import Grammar as Grammar
    from .health import Health as Health
    from .health import HealthState as HealthState
    from .hookspecs import Claim as Claim
    from .hookspecs import Command as Command
    from .hookspecs import Fit as Fit
    from .hookspecs import LoadContext as LoadContext
    from .hookspecs import Loaded as Loaded
    from .hookspecs import MemoryEstimate as MemoryEstimate
    from .hookspecs import ModelState as ModelState
    from .hookspecs import RunContext as RunContext
    from .hookspecs import Workload as Workload
    from .hookspecs import hookimpl as hookimpl
    from .images import AsyncImageHandle as AsyncImageHandle
    from .images import ImageHandle as ImageHandle
    from .images import Picture as Picture
    from .memory import Eviction as Eviction
    from .memory import MemoryReport as MemoryReport
    from .memory import ModelMemory as ModelMemory
    from .messages import AudioPart as AudioPart
    from .messages import ImagePart as ImagePart
    from .messages import Message as Message
    from .messages import Role as Role
    from .messages import TextPart as TextPart
    from .messages import ToolCallPart as ToolCallPart
    from .messages import ToolResultPart as ToolResultPart
    from .messages import VideoPart as VideoPart
    from .metrics import EngineCollector as EngineCollector
    from .metrics import Histogram as Histogram
    from .metrics import ModelMetrics as ModelMetrics
    from .metrics import openmetrics as openmetrics
    from .model import AsyncModelHandle as AsyncModelHandle
    from .model import AsyncTextHandle as AsyncTextHandle
    from .model import ModelHandle as ModelHandle
    from .model import TextHandle as TextHandle
    from .outputs import Array as Array
    from .outputs import ChoiceFinished as ChoiceFinished
    from .outputs import Embeddings as Embeddings
    from .outputs import ImagePreview as ImagePreview
    from .outputs import ImageReady as ImageReady
    from .outputs import ReasoningDelta as ReasoningDelta
    from .outputs import Scores as Scores
    from .outputs import TextScore as TextScore
    from .outputs import TokenLogprob as TokenLogprob
    from .outputs import ToolCall as ToolCall
    from .outputs import ToolResult as ToolResult
    from .outputs import TopLogprob as TopLogprob
    from .params import GenerateParams as GenerateParams
    from .partial_json import PartialJSON as PartialJSON
    from .plugins import Owner as Owner
    from .plugins import PluginRecord as PluginRecord
    from .protocol import LLMEngine as LLMEngine
    from .registry import ModelRegistry as ModelRegistry
    from .replies import Result as Result
    from .replies import TextReply as TextReply
    from .requests import EmbedRequest as EmbedRequest
    from .requests import ImageRequest as ImageRequest
    from .requests import LoadAdapterRequest as LoadAdapterRequest
    from .requests import RankRequest as RankRequest
    from .requests import Request as Request
    from .requests import ScoreRequest as ScoreRequest
    from .requests import TextRequest as TextRequest
    from .requests import UnloadAdapterRequest as UnloadAdapterRequest
    from .session import AsyncSession as AsyncSession
    from .session import Session as Session
    from .streams import AsyncEventStream as AsyncEventStream
    from .streams import EventStream as EventStream

_MODULES = ("errors", "hub")
_HOMES = {
    "configuration": "FileInfo ModelCard ModelConfiguration ModelRef Provenance Source TensorInfo",
    "aio": "AsyncInferenceEngine",
    "device": "Device",
    "diagnosis": "Diagnosis diagnose",
    "engine": "InferenceEngine",
    "errors": "MLXEngineError MisuseError",
    "embeddings": "AsyncEmbeddingHandle EmbeddingHandle",
    "events": "Event Finished FinishReason Metrics Progress TextDelta Usage",
    "outputs": "Array ChoiceFinished Embeddings ImagePreview ImageReady ReasoningDelta Scores TextScore "
    "TokenLogprob ToolCall ToolResult TopLogprob",
    "features": "Explanation Feature Features LLMEngineFeatures Stage",
    "images": "AsyncImageHandle ImageHandle Picture",
    "fit": "FitReport FitVerdict",
    "health": "Health HealthState",
    "checks": "Check CheckStatus SelfTestContext",
    "hookspecs": "Claim Command Fit LoadContext Loaded MemoryEstimate ModelState RunContext Workload "
    "hookimpl",
    "memory": "Eviction MemoryReport ModelMemory",
    "metrics": "EngineCollector Histogram ModelMetrics openmetrics",
    "messages": "AudioPart ImagePart Message Role TextPart ToolCallPart ToolResultPart VideoPart",
    "model": "AsyncModelHandle AsyncTextHandle ModelHandle TextHandle",
    "grammar": "Grammar",
    "params": "GenerateParams",
    "partial_json": "PartialJSON",
    "registry": "ModelRegistry",
    "plugins": "Owner PluginRecord",
    "protocol": "LLMEngine",
    "replies": "Result TextReply",
    "session": "AsyncSession Session",
    "requests": "EmbedRequest ImageRequest RankRequest Request ScoreRequest TextRequest "
    "UnloadAdapterRequest LoadAdapterRequest",
    "streams": "AsyncEventStream EventStream",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(["__version__", *_MODULES, *_HOME_OF])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
