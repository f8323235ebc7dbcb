"""A program as a user writes it, for type checkers; ``assert_type`` says what they must find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_type

from attrs import frozen
from mlxengine import (
    Array,
    AsyncInferenceEngine,
    AsyncModelHandle,
    Claim,
    Command,
    EmbedRequest,
    Event,
    Feature,
    Finished,
    Fit,
    GenerateParams,
    ImagePart,
    InferenceEngine,
    Kind,
    LoadContext,
    Loaded,
    Message,
    ModelCard,
    ModelConfiguration,
    ModelHandle,
    Picture,
    Request,
    RunContext,
    TextDelta,
    TextPart,
    TextReply,
    TokenUsage,
    hookimpl,
)
from mlxengine.text.session import AsyncSessionStream
from mlxengine.vectors.handle import Ranked, SparseVectors, TokenVectors, Vectors


def text(engine: InferenceEngine) -> str:
    chat = engine.load_text("org/name")
    for event in chat.stream("Hi", GenerateParams(max_tokens=8, seed=0, stop=["."])):
        match event:
            case TextDelta(text=piece):
                assert_type(piece, str)
            case Finished(usage=TokenUsage() as usage):
                assert_type(usage.total_tokens, int)
            case _:
                pass
    reply = chat.generate([Message.user([ImagePart("a.png"), TextPart("What is this?")])])
    assert_type(reply, TextReply)
    return reply.text


def others(engine: InferenceEngine) -> None:
    model = engine.load_embeddings("org/name", warm_up=True)
    assert_type(model.embed(["a", "b"], truncate_dim=64, normalize=True).shape, tuple[int, ...])
    assert_type(model.embed("a"), Vectors)
    assert_type(model.embed("a", output="tokens"), TokenVectors)
    assert_type(model.embed("a", output="sparse", task="query"), SparseVectors)
    assert_type(model.embed(iter("ab"), progress=print), Iterator[Array])
    assert_type(model.embed_query("a", precision="int8"), Vectors)
    assert_type(model.similarity("a", "b"), Array)
    assert_type(model.rank("a", ["b"], top_k=1), tuple[Ranked, ...])
    picture = engine.load_images("org/name").image("a circle", steps=4, seed=1)
    assert_type(picture, Picture)
    request = EmbedRequest(texts=["a"])
    for event in engine.load("org/name").stream(request):
        assert_type(event, Event)


async def later() -> str:
    async with AsyncInferenceEngine() as engine:
        chat = await engine.load_text("org/name")
        async for event in chat.stream("Hi"):
            assert_type(event, Event)
        session = chat.session(instructions="Be brief.", tool_rounds=2)
        assert_type(session.stream("Hi"), AsyncSessionStream)
        assert_type(await session.respond("Hi"), TextReply)
        model = await engine.load_embeddings("org/name", verify="deep")
        assert_type(await model.embed("a"), Vectors)
        assert_type(await model.embed("a", output="tokens"), TokenVectors)
        assert_type(await model.embed("a", output="sparse"), SparseVectors)
        async for vector in await model.embed(iter("ab")):
            assert_type(vector, Array)
        assert_type(await model.embed_document("a", ranges=([0.0], [1.0])), Vectors)
        assert_type(await model.similarity("a", "b"), Array)
        assert_type(await model.rank("a", ["b"], progress=print), tuple[Ranked, ...])
        assert_type(await (await engine.load_images("org/name")).image("a", n=2), tuple[Picture, ...])
        assert_type(await engine.switch("org/name"), AsyncModelHandle)
        assert_type(await engine.resolve("org/name"), ModelCard)
        assert_type((await engine.fit("org/name")).needed, int)
        return (await chat.generate("Hi", instructions="Be brief.")).text


@frozen(kw_only=True)
class Listen(Request):
    path: str


class EarHandle(ModelHandle):
    def listen(self, path: str) -> int:
        return len(self.run(Listen(path=path)).events)


class AsyncEarHandle(AsyncModelHandle):
    async def listen(self, path: str) -> int:
        return len((await self.run(Listen(path=path))).events)


def own_kind(engine: InferenceEngine) -> None:
    assert_type(engine.load_as(EarHandle, "org/name", plugin="ear"), EarHandle)
    assert_type(engine.load_as(EarHandle, "org/name").listen("a.wav"), int)


async def own_kind_later(engine: AsyncInferenceEngine) -> None:
    assert_type(await engine.load_as(AsyncEarHandle, "org/name", verify="deep"), AsyncEarHandle)


BITS = Feature[int | None](name="ear.bits", default=None, summary="Bits.", choices=(4, 8, None))


class Plugin:
    @hookimpl
    def list_features(self) -> Sequence[Feature[int | None]]:
        return [BITS]

    @hookimpl
    def list_models(self) -> Sequence[ModelConfiguration]:
        return [ModelConfiguration(id="org/name", kind="ear")]

    @hookimpl
    def list_kinds(self) -> Sequence[Kind]:
        return [Kind(name="ear", handle="ear.handle:EarHandle", pipelines=["automatic-speech-recognition"])]

    @hookimpl
    def claim_model(self, card: ModelCard) -> Claim | None:
        return Claim(kind="ear", fit=Fit.NATIVE, files=["*.json"], capabilities={"hearing"})

    @hookimpl
    def load_model(self, card: ModelCard, context: LoadContext) -> Loaded | None:
        assert_type(context.features.get(BITS), int | None)
        return Loaded(model=object())

    @hookimpl
    def generate(self, model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
        return iter([Finished()]) if isinstance(request, Listen) else None

    @hookimpl
    def list_commands(self) -> Sequence[Command]:
        return [Command(name="listen", summary="Listen.", target="ear.cli:main")]
