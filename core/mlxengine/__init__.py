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
    from ._config import plugin_settings as plugin_settings
    from .aio import AsyncInferenceEngine as AsyncInferenceEngine
    from .contract.checks import Check as Check
    from .contract.checks import CheckStatus as CheckStatus
    from .contract.checks import SelfTestContext as SelfTestContext
    from .contract.configuration import FileInfo as FileInfo
    from .contract.configuration import ModelCard as ModelCard
    from .contract.configuration import ModelConfiguration as ModelConfiguration
    from .contract.configuration import ModelRef as ModelRef
    from .contract.configuration import Provenance as Provenance
    from .contract.configuration import Source as Source
    from .contract.configuration import TensorInfo as TensorInfo
    from .contract.device import Device as Device
    from .contract.events import Array as Array
    from .contract.events import Event as Event
    from .contract.events import Finished as Finished
    from .contract.events import FinishReason as FinishReason
    from .contract.events import Metrics as Metrics
    from .contract.events import Progress as Progress
    from .contract.events import Usage as Usage
    from .contract.events import Waiting as Waiting
    from .contract.features import Explanation as Explanation
    from .contract.features import Feature as Feature
    from .contract.features import Features as Features
    from .contract.features import LLMEngineFeatures as LLMEngineFeatures
    from .contract.features import Stage as Stage
    from .contract.fit import FitReport as FitReport
    from .contract.fit import FitVerdict as FitVerdict
    from .contract.hookspecs import Claim as Claim
    from .contract.hookspecs import Command as Command
    from .contract.hookspecs import Fit as Fit
    from .contract.hookspecs import LoadContext as LoadContext
    from .contract.hookspecs import Loaded as Loaded
    from .contract.hookspecs import MemoryEstimate as MemoryEstimate
    from .contract.hookspecs import ModelState as ModelState
    from .contract.hookspecs import Route as Route
    from .contract.hookspecs import RunContext as RunContext
    from .contract.hookspecs import Workload as Workload
    from .contract.hookspecs import hookimpl as hookimpl
    from .contract.kinds import Answer as Answer
    from .contract.kinds import Asking as Asking
    from .contract.kinds import Kind as Kind
    from .contract.kinds import Lesser as Lesser
    from .contract.kinds import Measuring as Measuring
    from .contract.kinds import Mock as Mock
    from .contract.kinds import Option as Option
    from .contract.kinds import Task as Task
    from .contract.kinds import Wanted as Wanted
    from .contract.media import ImagePart as ImagePart
    from .contract.plugins import Owner as Owner
    from .contract.plugins import PluginRecord as PluginRecord
    from .contract.requests import Request as Request
    from .contract.tokens import TokenUsage as TokenUsage
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import diagnose as diagnose
    from .engine import InferenceEngine as InferenceEngine
    from .errors import MisuseError as MisuseError
    from .errors import MLXEngineError as MLXEngineError
    from .handle import AsyncModelHandle as AsyncModelHandle
    from .handle import ModelHandle as ModelHandle
    from .handle import Result as Result
    from .health import Health as Health
    from .health import HealthState as HealthState
    from .memory import Eviction as Eviction
    from .memory import LoadUnderWay as LoadUnderWay
    from .memory import MemoryReport as MemoryReport
    from .memory import ModelMemory as ModelMemory
    from .metrics import EngineCollector as EngineCollector
    from .metrics import Histogram as Histogram
    from .metrics import ModelMetrics as ModelMetrics
    from .metrics import openmetrics as openmetrics
    from .pictures.handle import AsyncImageHandle as AsyncImageHandle
    from .pictures.handle import ImageHandle as ImageHandle
    from .pictures.handle import Picture as Picture
    from .pictures.outputs import ImagePreview as ImagePreview
    from .pictures.outputs import ImageReady as ImageReady
    from .pictures.requests import ImageControl as ImageControl
    from .pictures.requests import ImageRequest as ImageRequest
    from .pictures.requests import IPAdapter as IPAdapter
    from .pictures.workload import PictureWorkload as PictureWorkload
    from .protocol import LLMEngine as LLMEngine
    from .registry import ModelRegistry as ModelRegistry
    from .streams import AsyncEventStream as AsyncEventStream
    from .streams import EventStream as EventStream
    from .text.grammar import Grammar as Grammar
    from .text.handle import AsyncTextHandle as AsyncTextHandle
    from .text.handle import TextHandle as TextHandle
    from .text.messages import AudioPart as AudioPart
    from .text.messages import Message as Message
    from .text.messages import ReasoningPart as ReasoningPart
    from .text.messages import Role as Role
    from .text.messages import TextPart as TextPart
    from .text.messages import ToolCallPart as ToolCallPart
    from .text.messages import ToolResultPart as ToolResultPart
    from .text.messages import VideoPart as VideoPart
    from .text.outputs import ChoiceFinished as ChoiceFinished
    from .text.outputs import Prepared as Prepared
    from .text.outputs import ReasoningDelta as ReasoningDelta
    from .text.outputs import TextDelta as TextDelta
    from .text.outputs import TextScore as TextScore
    from .text.outputs import TokenLogprob as TokenLogprob
    from .text.outputs import ToolCall as ToolCall
    from .text.outputs import ToolCallDelta as ToolCallDelta
    from .text.outputs import ToolResult as ToolResult
    from .text.outputs import TopLogprob as TopLogprob
    from .text.params import GenerateParams as GenerateParams
    from .text.partial_json import PartialJSON as PartialJSON
    from .text.replies import TextReply as TextReply
    from .text.requests import LoadAdapterRequest as LoadAdapterRequest
    from .text.requests import PrepareRequest as PrepareRequest
    from .text.requests import ScoreRequest as ScoreRequest
    from .text.requests import TextRequest as TextRequest
    from .text.requests import ToolChoice as ToolChoice
    from .text.requests import UnloadAdapterRequest as UnloadAdapterRequest
    from .text.session import AsyncSession as AsyncSession
    from .text.session import Session as Session
    from .text.workload import TextWorkload as TextWorkload
    from .vectors.handle import EmbeddingHandle as EmbeddingHandle
    from .vectors.handle_async import AsyncEmbeddingHandle as AsyncEmbeddingHandle
    from .vectors.outputs import Embeddings as Embeddings
    from .vectors.outputs import Hits as Hits
    from .vectors.outputs import Scores as Scores
    from .vectors.outputs import Similarities as Similarities
    from .vectors.outputs import SparseEmbeddings as SparseEmbeddings
    from .vectors.outputs import SparseVector as SparseVector
    from .vectors.requests import EmbedRequest as EmbedRequest
    from .vectors.requests import MaxSimRequest as MaxSimRequest
    from .vectors.requests import PredictRequest as PredictRequest
    from .vectors.requests import RankRequest as RankRequest
    from .vectors.requests import SearchRequest as SearchRequest
    from .vectors.workload import VectorWorkload as VectorWorkload

_MODULES = ("errors", "hub")
_HOMES = {
    "_config": "plugin_settings",
    "aio": "AsyncInferenceEngine",
    "contract.checks": "Check CheckStatus SelfTestContext",
    "contract.configuration": "FileInfo ModelCard ModelConfiguration ModelRef Provenance Source TensorInfo",
    "contract.device": "Device",
    "contract.events": "Array Event Finished FinishReason Metrics Progress Usage Waiting",
    "contract.features": "Explanation Feature Features LLMEngineFeatures Stage",
    "contract.fit": "FitReport FitVerdict",
    "contract.hookspecs": "Claim Command Fit LoadContext Loaded MemoryEstimate ModelState Route RunContext "
    "Workload hookimpl",
    "contract.kinds": "Answer Asking Kind Lesser Measuring Mock Option Task Wanted",
    "contract.media": "ImagePart",
    "contract.plugins": "Owner PluginRecord",
    "contract.requests": "Request",
    "contract.tokens": "TokenUsage",
    "diagnosis": "Diagnosis diagnose",
    "engine": "InferenceEngine",
    "errors": "MLXEngineError MisuseError",
    "handle": "AsyncModelHandle ModelHandle Result",
    "health": "Health HealthState",
    "memory": "Eviction LoadUnderWay MemoryReport ModelMemory",
    "metrics": "EngineCollector Histogram ModelMetrics openmetrics",
    "pictures.handle": "AsyncImageHandle ImageHandle Picture",
    "pictures.outputs": "ImagePreview ImageReady",
    "pictures.workload": "PictureWorkload",
    "pictures.requests": "IPAdapter ImageControl ImageRequest",
    "protocol": "LLMEngine",
    "registry": "ModelRegistry",
    "streams": "AsyncEventStream EventStream",
    "text.grammar": "Grammar",
    "text.handle": "AsyncTextHandle TextHandle",
    "text.messages": "AudioPart Message ReasoningPart Role TextPart ToolCallPart ToolResultPart VideoPart",
    "text.outputs": "ChoiceFinished Prepared ReasoningDelta TextDelta TextScore TokenLogprob ToolCall "
    "ToolCallDelta ToolResult TopLogprob",
    "text.params": "GenerateParams",
    "text.partial_json": "PartialJSON",
    "text.replies": "TextReply",
    "text.workload": "TextWorkload",
    "text.requests": "LoadAdapterRequest PrepareRequest ScoreRequest TextRequest ToolChoice "
    "UnloadAdapterRequest",
    "text.session": "AsyncSession Session",
    "vectors.handle": "EmbeddingHandle",
    "vectors.handle_async": "AsyncEmbeddingHandle",
    "vectors.outputs": "Embeddings Hits Scores Similarities SparseEmbeddings SparseVector",
    "vectors.workload": "VectorWorkload",
    "vectors.requests": "EmbedRequest MaxSimRequest PredictRequest RankRequest SearchRequest",
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
