"""JSON lines and CSV as Parquet in the run directory: written once, and read as any shard is.

Lines are told by number where one cannot be read. Nothing is guessed from how text looks: a date
in JSON stays text, and of a CSV file every column is text that the run does not need as a number.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from ray_judge.errors import InputError
from ray_judge.run.files import format_of
from ray_judge.storage.hub import open_source
from ray_judge.storage.local import open_storage

PIECE = 16 << 20
"""So many bytes of JSON are read at a time, and about so many characters of CSV."""
SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|\\u([dD][89a-fA-F]\w\w)", re.ASCII
)
"""Escapes in JSON text; the group is half of a pair without its other half."""
FLAGS = {"true": "1", "false": "0"}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
Numbers = Mapping[str, type[int] | type[float]]
"""Columns of a CSV file that are numbers."""


def stage(path: str, name: str, print_: str, numbers: Numbers, output: str) -> str:
    """Write a file as Parquet of this name below `output`, unless it is there; give its path.

    `print_`: the file's fingerprint. Raises InputError, naming the line.
    """
    storage, kind = open_storage(output), format_of(path)
    known = json.dumps([print_, {column: type_.__name__ for column, type_ in numbers.items()}])
    place = f"staged/{hashlib.sha256(known.encode()).hexdigest()[:16]}/{name}"
    if not storage.exists(place):
        try:
            if kind == "CSV":
                tables = _read_csv(path, numbers)
            else:
                schema, texts = _json_schema(path)
                tables = (_read_json(*piece, path, texts, schema) for piece in _pieces(path))
            first = next(tables)
            with (
                storage.write_stream(place) as sink,
                pq.ParquetWriter(sink, first.schema, compression="zstd") as writer,
            ):
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
        except StopIteration:
            raise InputError("this file is empty", file=path) from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot be staged from {kind}: {error}", file=path) from None
    return f"{storage.uri}/{place}"


def _open(path: str) -> Any:
    root, _, name = path.rpartition("/")
    file = pa.BufferedInputStream(open_source(root).open_input(name), PIECE)
    codec = COMPRESSED.get(f".{name.lower().rpartition('.')[2]}")
    return pa.CompressedInputStream(file, codec) if codec else file


def _pieces(path: str) -> Iterator[tuple[bytes, int]]:
    """The file in pieces of whole lines, each with the number of its first line."""
    rest, line = b"", 1
    with _open(path) as file:
        while block := file.read(PIECE):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if whole.strip():
                yield _readable(whole), line
            line += whole.count(b"\n") + len(newline)
    if rest.strip():
        yield _readable(rest), line


def _readable(piece: bytes) -> bytes:
    """Without a byte order mark; half a surrogate pair in its bytes, which are no UTF-8: the
    error of its own row.
    """
    return SURROGATES.sub(_half, piece.removeprefix(b"\xef\xbb\xbf"))


def _half(found: re.Match[bytes]) -> bytes:
    return chr(int(found[1], 16)).encode("utf-8", "surrogatepass") if found[1] else found[0]


def _json_schema(path: str) -> tuple[pa.Schema, set[str]]:
    """The columns, and which of them are staged as JSON text, for they have no type of their own:
    theirs differs from line to line, or is an object without keys, which Parquet cannot keep.
    """
    fields: dict[str, pa.Field] = {}
    texts: set[str] = set()
    for piece, line in _pieces(path):
        for found in _typed(piece, line, path, texts):
            name, field = found.name, found.with_type(_as_written(found.type))
            try:
                both = [pa.schema([one]) for one in (fields.get(name, field), field)]
                fields[name] = pa.unify_schemas(both, promote_options="permissive").field(0)
            except pa.ArrowException:
                texts.add(name)
                fields[name] = pa.field(name, pa.string())
    texts |= {name for name, field in fields.items() if _has_no_keys(field.type)}
    kinds = [pa.field(name, pa.string()) if name in texts else fields[name] for name in fields]
    return pa.schema(kinds), texts


def _typed(piece: bytes, line: int, path: str, texts: set[str]) -> pa.Schema:
    """The columns of a piece; `texts` gains those whose type differs from line to line."""
    while True:
        try:
            return _read_json(piece, line, path, texts).schema
        except InputError as error:
            found = re.search(r"Column\(/(.*)\) changed from", error.message)
            parts = found[1].split("/") if found else []
            names = {"/".join(parts[: n + 1]) for n in range(len(parts))} - texts
            if not (new := names & _names(piece)):
                raise
            texts |= new


def _names(piece: bytes) -> set[str]:
    found = (_object(line) for line in piece.split(b"\n"))
    return {name for one in found if one for name in one}


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8", "surrogateescape")
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None  # Arrow reads this line as it is, and says what is wrong
    return found if isinstance(found, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _has_no_keys(kind: pa.DataType) -> bool:
    """Whether objects without keys are in it."""
    if pa.types.is_list(kind):
        return _has_no_keys(kind.value_type)
    return pa.types.is_struct(kind) and (
        not kind.num_fields or any(_has_no_keys(field.type) for field in kind)
    )


def _with_texts(piece: bytes, texts: set[str]) -> bytes:
    """The same lines, these columns' values as JSON text; what is text stays it."""
    lines = piece.split(b"\n")
    for n, line in enumerate(lines):
        if (found := _object(line)) is None or not texts & found.keys():
            continue
        for name in texts & found.keys():
            if found[name] is not None and not isinstance(found[name], str):
                found[name] = json.dumps(found[name], ensure_ascii=False)
        lines[n] = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return b"\n".join(lines)


def _as_written(kind: pa.DataType) -> pa.DataType:
    """The type without timestamps, which Arrow sees in text that is like one."""
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_written(field.type)) for field in kind])
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _read_json(
    piece: bytes, line: int, path: str, texts: set[str], schema: pa.Schema | None = None
) -> pa.Table:
    piece = _with_texts(piece, texts) if texts else piece
    reads = pj.ReadOptions(block_size=len(piece) + 1)
    parses = pj.ParseOptions(explicit_schema=schema)
    try:
        return pj.read_json(io.BytesIO(piece), reads, parses)
    except pa.ArrowInvalid as error:
        raise InputError(_explain(piece, line, str(error)), file=path) from None


def _explain(piece: bytes, line: int, said: str) -> str:
    lines = [(n, text) for n, text in enumerate(piece.split(b"\n"), line) if text.strip()]
    for number, text in lines:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"line {number:,} is not JSON: {error}"
        if not isinstance(found, dict):
            return f"line {number:,} is no JSON object with the columns as its keys"
    row = re.search(r"in row (\d+)", said)
    if row and int(row[1]) < len(lines):
        return f"line {lines[int(row[1])][0]:,}: {said[: row.start()].strip()}"
    return f"from line {line:,} on: {said}"


def _read_csv(path: str, numbers: Numbers) -> Iterator[pa.Table]:
    csv.field_size_limit(1 << 30)
    with _open(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, strict=True)
        try:
            if not (names := next(rows, [])):
                return
            if len(names) == 1 and (other := re.search(r"[;\t]", names[0])):
                said = f"its fields have {other[0]!r} between them, and are to have commas"
                raise InputError(said, file=path)
            began, held = 0, _some(rows, len(names), path)
            while held or not began:
                columns = list(zip(*held, strict=True)) or [()] * len(names)
                made = [_column(n, list(c), numbers.get(n), path, began)
                        for n, c in zip(names, columns, strict=True)]  # fmt: skip
                yield pa.table(made, names)
                began += len(held) or 1
                held = _some(rows, len(names), path)
        except csv.Error as error:
            raise InputError(f"line {rows.line_num:,}: {error}", file=path) from None


def _some(rows: Any, width: int, path: str) -> list[list[str]]:
    held, size = [], 0
    for row in rows:
        if row and len(row) != width:
            said = f"{len(row)} fields where the header has {width}"
            raise InputError(f"line {rows.line_num:,}: {said}", file=path)
        if row:
            held.append(row)
            size += sum(map(len, row))
        if size >= PIECE:
            break
    return held


def _column(name: str, texts: list[str], kind: Any, path: str, began: int) -> pa.Array:
    if kind is None:
        values = [text.encode("utf-8", "surrogateescape") or None for text in texts]
        return pa.array(values, pa.binary()).view(pa.string())
    numbers: list[float | None] = []
    for row, text in enumerate(texts, began):
        try:
            numbers.append(kind(FLAGS.get(text.lower(), text)) if text else None)
        except ValueError:
            where = {"file": path, "column": name, "row": row}
            raise InputError(f"{text!r} is no number", **where) from None
    return pa.array(numbers, pa.int64() if kind is int else pa.float64())
