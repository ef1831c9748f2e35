"""Reflection that shows the comments of the contract.

It replaces the servicer of grpcio-reflection, which returns no comments, does not serve v1, and finds no method by its
name. That servicer also lacks files that no service imports: https://github.com/grpc/grpc/issues/34743
"""

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

_PARTS: Final = ("message_type", "nested_type", "field", "oneof_decl", "enum_type", "extension", "service", "method")
"""The fields of a descriptor that list what a file, or a part of it, declares."""


class ReflectionServicer:
    """Answers grpc.reflection.v1 or v1alpha. The two have the same messages under two names.

    https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
    """

    def __init__(self, name: str, services: Iterable[str]) -> None:
        """Args: name, the full name of this service; services, the full names of the services to list."""
        _declare_v1()
        method: Any = descriptor_pool.Default().FindMethodByName(f"{name}.ServerReflectionInfo")
        self._response = GetMessageClass(method.output_type)
        self._services = [{"name": service} for service in services]

    def ServerReflectionInfo(self, requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802 - the name of the method
        """Yields the response to each request."""
        for request in requests:
            try:
                answer = self._answer(request)
            except KeyError:
                answer = _error(grpc.StatusCode.NOT_FOUND, "no file, symbol or extension has this name")
            yield self._response(valid_host=request.host, original_request=request, **answer)

    def _answer(self, request: Any) -> dict[str, Any]:
        """Returns the response. Raises KeyError if nothing has the name in the request."""
        kind, descriptors = request.WhichOneof("message_request"), _descriptors()
        if kind == "list_services":
            return {"list_services_response": {"service": self._services}}
        if kind == "file_by_filename":
            return descriptors.file(request.file_by_filename)
        if kind == "file_containing_symbol":
            return descriptors.file(descriptors.symbols[request.file_containing_symbol])
        if kind == "file_containing_extension":
            extension = request.file_containing_extension
            return descriptors.file(descriptors.extensions[extension.containing_type][extension.extension_number])
        if kind == "all_extension_numbers_of_type":
            return descriptors.extension_numbers(request.all_extension_numbers_of_type)
        return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request is empty")


class _Descriptors:
    """The files of all services, by what they declare."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self.symbols: Final[dict[str, str]] = {}
        """The file that declares a full name."""
        self.extensions: Final[dict[str, dict[int, str]]] = {}
        """The file that declares an extension, by the type that it extends and its number."""
        self._files = {file.name: file for file in files}
        for file in self._files.values():
            self._add(file.name, file.package, file)

    def _add(self, file: str, scope: str, declaring: Any) -> None:
        for part in (part for parts in _PARTS for part in getattr(declaring, parts, ())):
            name = f"{scope}.{part.name}"
            self.symbols[name] = file
            self._add(file, name, part)
            if isinstance(part, EnumDescriptorProto):  # its values have the scope of the enum itself
                self.symbols.update((f"{scope}.{value.name}", file) for value in part.value)
            if extended := getattr(part, "extendee", ""):
                self.extensions.setdefault(extended.removeprefix("."), {})[part.number] = file

    def file(self, name: str) -> dict[str, Any]:
        """Returns the response with a file and all files that it imports, directly or not."""
        needed = [name]
        for one in needed:
            needed += [other for other in self._files[one].dependency if other not in needed]
        files = [self._files[one].SerializeToString() for one in needed]
        return {"file_descriptor_response": {"file_descriptor_proto": files}}

    def extension_numbers(self, message_type: str) -> dict[str, Any]:
        """Returns the response with the numbers of all extensions of a type."""
        numbers = sorted(self.extensions.get(message_type, ()))
        if message_type not in self.symbols:
            raise KeyError(message_type)
        return {"all_extension_numbers_response": {"base_type_name": message_type, "extension_number": numbers}}


@cache
def _descriptors() -> _Descriptors:
    """Returns the descriptors. The first request loads them, because few processes get one."""
    return _Descriptors(_files())


def _files() -> Iterator[FileDescriptorProto]:
    for module in (health_pb2, reflection_pb2):
        yield from _with_dependencies(module.DESCRIPTOR)
    yield _reflection_v1()
    contract = resources.files("caseload.v1").joinpath("caseload.binpb").read_bytes()
    # These have comments. They come last, because the last of two files of a name counts.
    yield from FileDescriptorSet.FromString(contract).file


def _with_dependencies(file: Any) -> Iterator[FileDescriptorProto]:
    yield _proto(file)
    for needed in file.dependencies:
        yield from _with_dependencies(needed)


def _proto(file: Any) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto


@cache
def _reflection_v1() -> FileDescriptorProto:
    """Returns the file of v1, which grpcio-reflection lacks."""
    v1 = text_format.MessageToString(_proto(reflection_pb2.DESCRIPTOR)).replace("v1alpha", "v1")
    return text_format.Parse(v1, FileDescriptorProto())


def _declare_v1() -> None:
    pool: Any = descriptor_pool.Default()
    pool.AddSerializedFile(_reflection_v1().SerializeToString())  # does nothing when the pool has the same file


def _error(code: grpc.StatusCode, message: str) -> dict[str, Any]:
    number, _ = code.value
    return {"error_response": {"error_code": number, "error_message": message}}
