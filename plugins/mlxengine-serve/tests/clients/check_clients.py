"""Clients of others, as their users have them, against a server on loopback: ``make test-clients``.

Each Python client is in an environment of its own, because their requirements exclude each other; the agents
are npm packages, and a fuzzer reads ``/openapi.json``. All are kept in ``.cache/clients``. Needs an index of
packages, and npm for the agents.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from mlxengine_serve import ServerOptions  # noqa: E402
from planned_model import mending, plan  # noqa: E402
from serve_harness import Scripted, Served, serving, write_model  # noqa: E402
from test_malformed import NAMES, VALID  # noqa: E402

CACHE = Path(__file__).parents[4] / ".cache" / "clients"
AGENTS = ("@anthropic-ai/claude-code@2.1.332", "@openai/codex@0.171.0")

OPENAI = """
client = openai.OpenAI(base_url=url + "/v1", api_key="x")
assert client.chat.completions.create(model="m", messages=HI).choices[0].message.content == "Hello from here."
tool = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}
with client.chat.completions.stream(model="m", messages=HI, tools=[tool]) as stream:
    calls = stream.get_final_completion().choices[0].message.tool_calls
assert [(c.function.name, c.function.arguments) for c in calls] == [("weather", '{"city": "Oslo"}')]
with client.responses.stream(model="m", input="hi") as stream:
    assert stream.get_final_response().output_text == "Hello from here."
"""
ANTHROPIC = """
client = anthropic.Anthropic(base_url=url, api_key="x")
with client.messages.stream(model="m", max_tokens=9, messages=HI) as stream:
    assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]
assert client.messages.count_tokens(model="m", messages=HI).input_tokens == 42
"""
LITELLM = """
answer = litellm.completion(model="openai/m", api_base=url + "/v1", api_key="x", messages=HI, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "Hello from here."
answer = litellm.completion(model="anthropic/m", api_base=url, api_key="x", messages=HI, max_tokens=9)
assert answer.choices[0].message.content == "Hello from here."
"""
INSTRUCTOR = """
import openai, pydantic
class City(pydantic.BaseModel):
    name: str
    people: int
plain = openai.OpenAI(base_url=url + "/v1", api_key="x")
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    found = instructor.from_openai(plain, mode=mode).chat.completions.create(
        model="m", messages=HI, response_model=City)
    assert (found.name, found.people) == ("Oslo", 7), found
"""
LANGCHAIN_OPENAI = """
from langchain_core.tools import tool
from langchain_core.messages import HumanMessage, ToolMessage
@tool
def weather(city: str) -> str:
    "The weather."
    return "rain"
model = langchain_openai.ChatOpenAI(model="m", base_url=url + "/v1", api_key="x")
assert "".join(chunk.text for chunk in model.stream("hi")) == "Hello from here."
bound = model.bind_tools([weather])
first = bound.invoke("hi")
assert [(call["name"], call["args"]) for call in first.tool_calls] == [("weather", {"city": "Oslo"})]
history = [HumanMessage("hi"), first, ToolMessage("rain", tool_call_id=first.tool_calls[0]["id"])]
assert bound.invoke(history).text == "The tool said: rain"
"""
LANGCHAIN_ANTHROPIC = """
model = langchain_anthropic.ChatAnthropic(model="m", base_url=url, api_key="x", max_tokens=9)
assert model.invoke("hi").text == "Hello from here."
assert "".join(chunk.text for chunk in model.stream("hi")) == "Hello from here."
"""
PYDANTIC_AI = """
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
import pydantic
class City(pydantic.BaseModel):
    name: str
    people: int
model = OpenAIChatModel("m", provider=OpenAIProvider(base_url=url + "/v1", api_key="x"))
assert Agent(model).run_sync("hi").output == "Hello from here."
assert Agent(model, output_type=City).run_sync("hi").output == City(name="Oslo", people=7)
agent = Agent(model)
@agent.tool_plain
def weather(city: str) -> str:
    return f"rain in {city}"
assert agent.run_sync("hi").output == "The tool said: rain in Oslo"
"""
OPENAI_AGENTS = """
import asyncio, openai
from agents import Agent, OpenAIResponsesModel, Runner, function_tool
@function_tool
def weather(city: str) -> str:
    "The weather."
    return f"rain in {city}"
client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="x")
agent = Agent(name="a", model=OpenAIResponsesModel("m", client), tools=[weather])
async def main():
    run = Runner.run_streamed(agent, "hi")
    async for _ in run.stream_events():
        pass
    return run.final_output
assert asyncio.run(main()) == "The tool said: rain in Oslo"
"""
LLAMA_INDEX = """
import asyncio
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
def weather(city: str) -> str:
    "The weather."
    return f"rain in {city}"
llm = OpenAILike(model="m", api_base=url + "/v1", api_key="x", is_chat_model=True,
                 is_function_calling_model=True, context_window=32000)
hi = [ChatMessage(role="user", content="hi")]
assert llm.chat(hi).message.content == "Hello from here."
assert [*llm.stream_chat(hi)][-1].message.content == "Hello from here."
async def main():
    agent = FunctionAgent(tools=[weather], llm=llm, system_prompt="Use the tool.")
    return str(await agent.run("hi"))
assert asyncio.run(main()) == "The tool said: rain in Oslo"
"""
PYTHON = {
    "openai": ("openai==3.57.0", OPENAI),
    "anthropic": ("anthropic==2.14.0", ANTHROPIC),
    "litellm": ("litellm==1.110.2", LITELLM),
    "instructor": ("instructor==1.17.0", INSTRUCTOR),
    "langchain_openai": ("langchain-openai==1.7.4", LANGCHAIN_OPENAI),
    "langchain_anthropic": ("langchain-anthropic==1.7.10", LANGCHAIN_ANTHROPIC),
    "pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0", PYDANTIC_AI),
    "llama_index": ("llama-index-llms-openai-like==0.8.1", LLAMA_INDEX),
    "agents": ("openai-agents==0.24.0", OPENAI_AGENTS),
}
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model(tmp_path_factory.mktemp("models") / "m")
    with serving(ServerOptions(models=[f"m={folder}"], aliases=[("claude-*", "m")]), Scripted(plan)) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def run(command: list[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        check=False, timeout=600, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def environment(name: str, requirement: str) -> Path:
    """The interpreter of a client's own environment, made where it is not there."""
    folder = CACHE / name
    if not (folder / "complete").exists():
        run([sys.executable, "-m", "uv", "venv", "-q", "--clear", "--python", sys.executable, folder])
        python = folder / "bin" / "python"
        run([sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, requirement])
        (folder / "complete").touch()
    return folder / "bin" / "python"


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.timeout(900)
def test_a_python_client_works_as_its_users_have_it(name: str, server: Served) -> None:
    requirement, code = PYTHON[name]
    python = environment(name, requirement)
    head = f"import {name}\nurl = {server.url!r}\nHI = [{{'role': 'user', 'content': 'hi'}}]\n"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OPENAI"))}
    run([python, "-c", head + code], env={**clean, **QUIET})


# -- a fuzzer, by what the server says of itself -------------------------------------------------------------


@pytest.mark.timeout(900)
def test_schemathesis_finds_no_request_that_the_server_fails_at(tmp_path: Path) -> None:
    program = environment("schemathesis", "schemathesis==4.32.5").parent / "schemathesis"
    options = ServerOptions(models=list(NAMES.values()), max_pixels=64 * 64, max_steps=4)
    with serving(options, backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        said = made.get("/openapi.json").json()
        for path, body in VALID.items():  # else nearly every request would name a model that is not there
            for content in said["paths"][path]["post"]["requestBody"]["content"].values():
                content["schema"]["properties"]["model"] = {"const": body.get("model", NAMES["llm"])}
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(said))
        checks = "not_a_server_error,response_schema_conformance,content_type_conformance"
        run([
            program, "run", document, "--url", made.url, "--checks", checks, "--phases", "coverage,fuzzing",
            "--max-examples", "60", "--request-timeout", "20", "--seed", "1", "--continue-on-failure",
        ], cwd=tmp_path)  # fmt: skip
        made.wait_until(lambda: not made.engine.sync.status().tasks)


# -- agents --------------------------------------------------------------------------------------------------

WRONG = "def double(x):\n    return x * 3\n\nassert double(2) == 4\nprint('all is well')\n"


@pytest.fixture(scope="module")
def agents() -> Path:
    """The folder of the agents' npm packages."""
    npm = shutil.which("npm")
    assert npm is not None, "the agents are npm packages"
    if not (CACHE / "npm" / "complete").exists():
        run(
            [
                npm,
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
                CACHE / "npm",
                *AGENTS,
            ]
        )
        (CACHE / "npm" / "complete").touch()
    return CACHE / "npm" / "node_modules"


@pytest.mark.timeout(900)
def test_claude_code_edits_runs_and_mends_with_streamed_tools(
    agents: Path, server: Served, tmp_path: Path
) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    target = work / "double.py"
    command = {"command": f"{sys.executable} {target}", "description": "Run it"}
    assert server.plugin is not None
    server.plugin.plan = mending([
        ("Write", {"file_path": str(target), "content": WRONG}),
        ("Bash", command),
        ("Edit", {"file_path": str(target), "old_string": "x * 3", "new_string": "x * 2"}),
        ("Bash", command),
    ])  # fmt: skip
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": "dummy",
        "ANTHROPIC_MODEL": "m",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    claude = next(agents.glob("@anthropic-ai/claude-code-*/claude"))
    words = [
        "-p",
        "Write double.py, run it, mend it.",
        "--output-format",
        "json",
        "--allowedTools",
        "Write,Edit,Bash",
    ]
    said = json.loads(run([claude, *words], cwd=work, env=env).stdout)
    assert target.read_text() == WRONG.replace("x * 3", "x * 2")
    assert said["is_error"] is False
    assert said["result"].startswith("Done after 4 calls")
    assert "all is well" in said["result"]


@pytest.mark.timeout(900)
def test_codex_edits_runs_and_mends_with_streamed_tools(agents: Path, server: Served, tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    (home / ".codex").mkdir(parents=True)
    target = work / "double.py"
    (home / ".codex" / "config.toml").write_text(
        'model = "m"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
        f'base_url = "{server.url}/v1"\nwire_api = "responses"\nenv_key = "KEY"\n'
    )
    assert server.plugin is not None
    shell = [
        f"cat > {target} <<'END'\n{WRONG}END",
        f"{sys.executable} {target}",
        f"sed -i 's/x \\* 3/x * 2/' {target}",
        f"{sys.executable} {target}",
    ]
    server.plugin.plan = mending([("exec_command", {"cmd": line, "yield_time_ms": 5000}) for line in shell])
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "KEY": "dummy"}
    codex = agents / "@openai" / "codex" / "bin" / "codex.js"
    words = [
        "exec",
        "--skip-git-repo-check",
        "--sandbox",
        "danger-full-access",
        "Write double.py, run it, mend it.",
    ]
    said = run(["node", codex, *words], cwd=work, env=env).stdout
    assert target.read_text() == WRONG.replace("x * 3", "x * 2")
    assert "Done after 4 calls" in said
    assert "all is well" in said
