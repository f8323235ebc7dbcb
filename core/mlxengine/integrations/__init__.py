"""Embedding models of the engine in other people's frameworks, each a module that imports its framework.

| module | what it has | extra |
|-|-|-|
| ``langchain`` | an ``Embeddings`` | ``mlxengine[langchain]`` |
| ``llama_index`` | a ``BaseEmbedding`` | ``mlxengine[llama-index]`` |
| ``chroma`` | an ``EmbeddingFunction``, registered | ``mlxengine[chroma]`` |
| ``lancedb`` | a ``TextEmbeddingFunction``, registered | ``mlxengine[lancedb]`` |
| ``mteb`` | an ``EncoderProtocol`` | ``mlxengine[mteb]`` |
| ``sentence_transformers`` | a class with the calls of ``SentenceTransformer`` | none |

They use the engine's public API alone, and whatever plugin serves the model. A framework that is not
installed is a `ConfigurationError` that says what to install.
"""
