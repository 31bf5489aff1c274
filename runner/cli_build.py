"""The command line of `llmrun build-engine` (typer); commands_build.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_engine(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or a TensorRT-LLM checkpoint.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")],
    dtype: Annotated[str, typer.Option("--dtype", help="float16, bfloat16, auto.")] = "auto",
    tp_size: Annotated[int, typer.Option("--tp-size", min=1, help="GPUs that share each layer.")] = 1,
    pp_size: Annotated[int, typer.Option("--pp-size", min=1, help="Groups of layers, each on GPUs of its own.")] = 1,
    max_batch_size: Annotated[int | None, typer.Option("--max-batch-size", min=1, help="Requests at once.")] = None,
    max_input_len: Annotated[int | None, typer.Option("--max-input-len", min=1, help="Tokens of a prompt.")] = None,
    max_seq_len: Annotated[int | None, typer.Option("--max-seq-len", min=1, help="Of prompt and answer.")] = None,
    max_num_tokens: Annotated[int | None, typer.Option("--max-num-tokens", min=1, help="Of one step.")] = None,
    max_beam_width: Annotated[int | None, typer.Option("--max-beam-width", min=1, help="Beams.")] = None,
    examples: Annotated[str | None, typer.Option("--examples", help="Folder with convert_checkpoint.py (0.x).")] = None,
    engine_python: Annotated[str | None, typer.Option("--engine-python", help="A Python with tensorrt_llm.")] = None,
    build_arg: Annotated[list[str] | None, typer.Option("--build-arg", help="For trtllm-build, as it is.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands only.")] = False,
) -> None:
    """Build a TensorRT-LLM engine for out=trtllm."""
    from runner import commands_build
    from runner.engines.trtllm.build_plan import BuildWish

    wish = BuildWish(
        model=str(Path(model).expanduser().absolute()),
        dtype=dtype,
        tp_size=tp_size,
        pp_size=pp_size,
        max_batch_size=max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        max_beam_width=max_beam_width,
        examples=examples,
        build_args=tuple(build_arg or ()),
    )
    code = commands_build.build_engine(wish, Path(out), engine_python=engine_python, dry_run=dry_run)
    raise typer.Exit(code)
